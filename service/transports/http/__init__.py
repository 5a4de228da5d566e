"""The HTTP transport: the Open Inference Protocol, and predictions for clients such as curl, over HTTP/1.1."""
