"""What each RPC does, one file a proto service: request bytes in, reply bytes out, ServiceError if not."""
