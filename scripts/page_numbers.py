"""Write the data of the playground's computations in the browser: both networks, digits and a recorded training.

    python scripts/page_numbers.py [RECORDING]     after a change of weights; RECORDING is from `train --record`

The first layer's weights are 24-bit integers times a step. This reduces the file by a third and changes no activation
by more than 2e-6. The other numbers are float32. Without RECORDING the page keeps its recording.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from export import checkpoint
from export.network import Activation

if TYPE_CHECKING:
    import numpy.typing as npt

    from export.network import Floats, Network

ROOT = Path(__file__).parent.parent
FILE = ROOT / "playground/static/numbers.js"
BEFORE, AFTER = "globalThis.NUMBERS = ", ";\n"
SAMPLES = ROOT / "samples"
HARD = 6
"""Number of offered samples that the sigmoid network reads worst."""

BITS = 24


def main() -> None:
    """Write playground/static/numbers.js."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recording", nargs="?", type=Path, help="file of `python -m export train --record`")
    path = parser.parse_args().recording
    recording = json.loads(path.read_text()) if path else read()["recording"]
    FILE.write_text(text(numbers(recording)))
    print(f"wrote {FILE.relative_to(ROOT)}")


def read() -> Any:
    """Read the data in the file."""
    return json.loads(FILE.read_text().removeprefix(BEFORE).removesuffix(AFTER))


def text(content: dict[str, Any]) -> str:
    """Return the file: a script, because a page from disk cannot load JSON."""
    return f"{BEFORE}{json.dumps(content, separators=(',', ':'))}{AFTER}"


def numbers(recording: dict[str, Any]) -> dict[str, Any]:
    """Return the data of the page."""
    checkpoints = {name: checkpoint.load(checkpoint.committed(name)) for name in get_args(Activation)}
    return {
        "networks": {
            name: {**packed(one.network), "accuracy": one.measured["accuracy"]} for name, one in checkpoints.items()
        },
        "samples": samples(checkpoints["sigmoid"].network),
        "recording": recording,
    }


def packed(network: Network) -> dict[str, Any]:
    """Return the parameters, and their digest as a server reports it."""
    first, *others = network.parameters().values()
    step, integers = fixed_point(first)
    rest = np.concatenate([values.reshape(-1) for values in others])
    return {
        "sha256": network.sha256(),
        "step": step,
        "first": _base64(integers),
        "rest": _base64(rest.astype("<f4")),
    }


def fixed_point(weights: Floats) -> tuple[float, npt.NDArray[np.uint8]]:
    """Return the step, and the weights in steps: a plane of low bytes, one of middle bytes, one of high bytes.

    The sign is in the lowest bit, so that the high bytes, which are mostly small, compress.
    """
    step = float(np.abs(weights).max()) / 2 ** (BITS - 1)
    steps = np.rint(weights.reshape(-1) / step).astype(np.int64).clip(-(2 ** (BITS - 1)) + 1, 2 ** (BITS - 1) - 1)
    folded = np.where(steps < 0, -2 * steps - 1, 2 * steps).astype("<u4")
    return step, folded.view(np.uint8).reshape(-1, 4)[:, :3].T.reshape(-1)


def samples(network: Network) -> dict[str, list[dict[str, Any]]]:
    """Return the best sample of each digit, and the samples that the network reads worst, the worst first."""
    images = np.fromfile(SAMPLES / "digits-100-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 784)
    labels = np.fromfile(SAMPLES / "digits-100-labels-idx1-ubyte", np.uint8, offset=8)
    worst_first = np.argsort(_margins(network.forward(images).activations, labels), kind="stable").tolist()
    best = {int(labels[i]): i for i in worst_first}  # the last one of each label remains

    def offered(chosen: list[int]) -> list[dict[str, Any]]:
        return [{"label": int(labels[i]), "pixels": _base64(images[i])} for i in chosen]

    return {"clear": offered([best[label] for label in sorted(best)]), "hard": offered(worst_first[:HARD])}


def _margins(outputs: npt.NDArray[np.float64], labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return how far the label's output exceeds the largest other one, (n,); negative if misread."""
    is_label = np.arange(outputs.shape[1]) == labels[:, None]
    margins: npt.NDArray[np.float64] = outputs[is_label] - np.where(is_label, -np.inf, outputs).max(axis=1)
    return margins


def _base64(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


if __name__ == "__main__":
    main()
