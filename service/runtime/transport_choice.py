"""The choice of the transport by the options and the installed packages. Its imports are light: `make run` uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from service.errors import StartError
from service.transports.native import wheel

if TYPE_CHECKING:
    from service.config import Settings

INSTALL_NATIVE = "`make native` in a clone, or pip install 'digitserve[native]'"
_GRPCIO_OPTIONS = ("otlp_endpoint",)


class TransportChoice(NamedTuple):
    """The name of a transport. If `auto` could not select native: the reason, and the remedy."""

    name: str
    reason: str = ""
    remedy: str = ""


def choose_transport(settings: Settings) -> TransportChoice:
    """Choose native if it is required or possible. Raises StartError if it is required and impossible."""
    if settings.transport == "grpcio":
        return TransportChoice("grpcio")
    if problem := wheel.problem():
        reason, remedy = problem, INSTALL_NATIVE
    elif unsupported := ", ".join(grpcio_options_in_use(settings)):
        reason, remedy = f"native does not offer {unsupported}", ""
    else:
        return TransportChoice("native")
    if settings.transport == "native":
        remedies = f"{remedy}, or choose grpcio" if remedy else "choose grpcio"
        raise StartError(f"--transport (or DIGITS_TRANSPORT) is 'native', but {reason}: {remedies}")
    return TransportChoice("grpcio", reason, remedy)


def grpcio_options_in_use(settings: Settings) -> list[str]:
    """Return the options in use that only the grpcio transport supports; native must not ignore them."""
    return [f"--{name.replace('_', '-')}" for name in _GRPCIO_OPTIONS if getattr(settings, name)]
