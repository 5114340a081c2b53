"""ASGI middleware: API keys, body limits, decompression, HEAD, the root path."""
