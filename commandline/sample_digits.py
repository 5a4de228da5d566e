"""The 100 sample digits of MNIST: in samples/ of a clone, and inside this package if pip installed it."""

from __future__ import annotations

from pathlib import Path

_INSTALLED = Path(__file__).parent / "samples"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parent.parent / "samples"
IMAGES = FOLDER / "digits-100-images-idx3-ubyte"
LABELS = FOLDER / "digits-100-labels-idx1-ubyte"
