"""The HTTP layer: routes, request bodies, response schemas, and the table from errors to status codes."""
