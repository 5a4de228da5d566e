"""Scores files of millions of digits with a model.onnx: `digitserve score`."""
