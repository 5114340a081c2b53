"""The loaded models, and what happens to a request's images in one of them. Knows nothing of HTTP."""
