"""Which models there are, and how a request's images pass through one. Knows nothing of HTTP."""
