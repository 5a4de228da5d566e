"""The real model behind a gate."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from conftest import ANSWERS_WITHIN

if TYPE_CHECKING:
    import numpy as np

    from service.inference.model import Model
    from service.network import Predictions


class Held:
    """The real model, blocked until a test opens the gate; it records its batches."""

    def __init__(self, model: Model) -> None:
        self.info = model.info
        self.parameters = model.parameters
        self.model = model
        self.go = threading.Event()
        self.sizes: list[int] = []
        self.fail: set[int] = set()

    def predict(self, pixels: np.ndarray) -> Predictions:
        self.sizes.append(len(pixels))
        self.go.wait(ANSWERS_WITHIN)
        if len(pixels) in self.fail:
            raise RuntimeError("device lost")
        return self.model.predict(pixels)
