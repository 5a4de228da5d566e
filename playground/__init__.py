"""The page that looks inside: draw a digit, see every layer; a gateway from the browser to the gRPC service."""
