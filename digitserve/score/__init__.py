"""Scores files of digits with a model.onnx, millions at a time: `digitserve score`."""
