"""`python -m app score`: the offline scorer. It gives the service's results for files and folders, without a server."""
