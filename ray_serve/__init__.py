"""Serves the same handlers and model on a cluster of Ray, as a Ray Serve application: `python -m ray_serve`."""
