"""TLS, bearer tokens, and the files that both come from."""
