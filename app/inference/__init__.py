"""The loaded models, and the way of a request's images through one of them. Knows nothing of HTTP."""
