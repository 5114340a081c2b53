"""HTTP, and the only place that knows it: routes, bodies, schemas, and the table from errors to statuses."""
