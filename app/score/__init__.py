"""`python -m app score`: what the service does, over files and folders, without one."""
