"""The model in a session of the native transport: runs on the CPU that do not enter the interpreter."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.network import PIXELS
from service.transports.native import wheel

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from service.batching.batcher import InferenceModel

_PROBES = (1, 2, 63, 128)
"""Images of the batches that both sessions must answer alike; 128 is the largest run in Rust."""


def load_session(model: InferenceModel, log: FilteringBoundLogger) -> Any:
    """Return a `digitserve_native.Session` of the model, or None, with a log line, if Python must run it.

    None without a log line for a model without a `float_graph`, such as one on a device.
    """
    graph = getattr(model, "float_graph", None)
    if graph is None:
        return None
    try:
        session = wheel.load().Session(find_library(), graph)
        _check(session, model)
    except (OSError, RuntimeError, ValueError) as e:
        log.warning("model runs in Python", reason=str(e))
        return None
    return session


def find_library() -> Path:
    """Return the shared library in the package of ONNX Runtime; OSError if it has none."""
    spec = find_spec("onnxruntime")
    for folder in (spec and spec.submodule_search_locations) or []:
        for library in sorted(Path(folder, "capi").glob("libonnxruntime.*")):
            return library
    raise OSError("onnxruntime: its package has no libonnxruntime")


def _check(session: Any, model: InferenceModel) -> None:
    """ValueError unless both answer random images with the same bits."""
    noise = np.random.default_rng(784).integers(0, 256, (max(_PROBES), PIXELS), np.uint8)
    noise[::2] &= noise[1::2]  # half of them darker
    for n in _PROBES:
        expected, actual = model.predict(noise[:n]), session.run(noise[:n].astype(np.float32))
        for name, values in zip(expected._fields, actual, strict=True):
            array = getattr(expected, name)
            if not np.array_equal(array.ravel(), np.array(values, array.dtype)):
                raise ValueError(f"onnxruntime: {name} of {n} images differs between its library and its Python module")
