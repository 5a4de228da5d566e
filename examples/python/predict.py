"""Send the first of the sample digits, a 0, and print the server's answer."""

import os
from pathlib import Path

import numpy as np
from digitserve_client import DigitsClient, DigitsError

SAMPLES = Path(__file__).parents[2] / "samples" / "digits-100-images-idx3-ubyte"
# 16 bytes of header, then 28x28 bytes an image: 0 is background, 255 is ink.
image = np.fromfile(SAMPLES, np.uint8, count=784, offset=16).reshape(28, 28)

with DigitsClient(os.environ.get("DIGITS_ADDRESS", "localhost:50051"), timeout=5.0) as client:
    try:
        predictions = client.predict(image)
    except DigitsError as error:
        raise SystemExit(f"{error.code.name}: {error.message}") from None

digit = predictions.digits[0]
print(f"digit {digit}, activation {predictions.activations[0, digit]:.2f}")
