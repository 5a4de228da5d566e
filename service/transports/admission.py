"""The queue of the model as a transport sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from service.errors import Overloaded


class AdmissionQueue(Protocol):
    """The queue of the model, as in `service.batching.batcher.Batcher`."""

    @property
    def is_full(self) -> bool:
        """Whether the queue rejects requests."""
        ...

    def overloaded_error(self) -> Overloaded:
        """Return the error for a rejected request, and count it."""
        ...
