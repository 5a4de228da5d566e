"""Detect unreliable answers, by their activations and their pictures."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["HIGHEST_SECOND", "LOWEST_TOP", "Inspection", "doubts", "runners_up"]

LOWEST_TOP, HIGHEST_SECOND = 0.6, 0.2
"""Activations: an answer with a lower first or a higher second is unsure."""

_HOLES = {0: (0, 1), 1: (0,), 2: (0, 1), 3: (0,), 4: (0, 1), 5: (0,), 6: (0, 1), 7: (0,), 8: (1, 2), 9: (0, 1)}
"""How many areas of paper each digit encloses as people write it."""

_LEAST_WAIST = 0.07
"""Share of the width by which the outline of an 8 bends inwards between its loops. A ring with a bar has no waist."""

Floats = npt.NDArray[np.float32]


class Inspection(NamedTuple):
    """The findings on one prepared picture: messages, the number of areas that its ink encloses, and its waist.

    The waist is the distance by which the outline bends inwards, as a share of the width.
    """

    warnings: tuple[str, ...] = ()
    holes: int | None = None
    waist: float | None = None


def runners_up(activations: Floats) -> npt.NDArray[np.int64]:
    """The digits with the second highest activation, (n,), for activations (n, 10)."""
    return np.asarray(np.argsort(-activations, axis=1, kind="stable")[:, 1], np.int64)


def doubts(activations: Floats, inspection: Inspection) -> tuple[str, ...]:
    """The warnings of one answer, (10,): those of its picture, and those of the answer itself."""
    digit, second = np.argsort(-activations, kind="stable")[:2].tolist()
    warnings = list(inspection.warnings)
    if activations[digit] < LOWEST_TOP or activations[second] > HIGHEST_SECOND:
        warnings.append(f"answer: {digit}, perhaps {second}; expected one clear digit")
    if inspection.holes is not None and inspection.holes not in _HOLES[digit]:
        expected = " or ".join(map(str, _HOLES[digit]))
        areas = "1 area" if inspection.holes == 1 else f"{inspection.holes} areas"
        warnings.append(f"answer: {digit}, but the ink encloses {areas}; expected {expected}")
    if digit == 8 and inspection.waist is not None and inspection.waist < _LEAST_WAIST:
        warnings.append("answer: 8, but the outline has no waist; expected two loops")
    return tuple(warnings)
