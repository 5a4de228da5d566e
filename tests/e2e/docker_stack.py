"""The stack and the images that stack.py and alerts.py share; both start with empty volumes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, __file__.rpartition("/")[0])

from engine import TLS, Stack, say, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt


@pytest.fixture(scope="module")
def images(digits: npt.NDArray[np.uint8]) -> list[bytes]:
    return [image.tobytes() for image in digits]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    if reason := why_not():
        pytest.skip(reason)
    stack = Stack()
    stack.files = TLS
    stack.compose("down", "--volumes", "--remove-orphans")
    stack.files = ["docker-compose.yml"]
    began = time.monotonic()
    stack.compose("build", "export", "service")
    say(f"images built in {time.monotonic() - began:.0f} s")
    yield stack
    stack.files = TLS
    stack.compose("down", "--volumes", "--remove-orphans")
