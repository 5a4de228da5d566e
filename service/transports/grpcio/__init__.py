"""The transport on the grpcio package."""
