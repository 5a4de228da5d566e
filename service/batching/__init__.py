"""How concurrent requests share runs of the model: admission, queue, adaptive batch size."""
