"""TLS, bearer tokens, and the files of both."""
