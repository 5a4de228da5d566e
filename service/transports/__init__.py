"""How requests come in: each transport serves the same handlers with the same statuses and metrics."""
