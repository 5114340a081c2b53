"""The routes under /v1, health checks, metrics, web pages and the OpenAPI document."""
