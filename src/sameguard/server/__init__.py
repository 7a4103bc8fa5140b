"""The guard as an HTTP server: a reverse proxy that stands before any model server. Runs without torch."""
