"""The client of digitserve: sends handwritten digits to the server and returns its answers."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from digitserve_client.client import AsyncDigitsClient, DigitsClient
    from digitserve_client.messages import DigitsError, ExplainResult, Explanation, FieldViolation, Network, Predictions
    from digitserve_client.pixels import ImageError, to_mnist

__version__ = "0.1.0"

__all__ = [
    "AsyncDigitsClient",
    "DigitsClient",
    "DigitsError",
    "ExplainResult",
    "Explanation",
    "FieldViolation",
    "ImageError",
    "Network",
    "Predictions",
    "to_mnist",
]

_MODULES = {
    **dict.fromkeys(("AsyncDigitsClient", "DigitsClient"), "digitserve_client.client"),
    **dict.fromkeys(("ImageError", "to_mnist"), "digitserve_client.pixels"),
}


def __getattr__(name: str) -> object:
    """Import a name at its first use: importing gRPC is slow, and Ctrl-C must work before it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES.get(name, "digitserve_client.messages"))
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
