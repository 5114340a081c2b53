"""One process, or several, that serve: the socket, the connections, the workers. The only importer of uvicorn."""
