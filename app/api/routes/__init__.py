"""The addresses under /v1, and those of health, pages and documentation."""
