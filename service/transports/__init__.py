"""The transports: each serves the same handlers with the same statuses and metrics."""
