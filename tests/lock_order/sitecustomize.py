"""Record the lock order of a process in the file $LOCK_ORDER, if this folder is in PYTHONPATH.

A lock is named by the line that created it. A line of the file is a pair: a held lock, and one acquired meanwhile.
Python imports this module first, so that no lock of `threading` is missed. Locks of C and of Rust, and so the
interpreter's, are not recorded.
"""

from __future__ import annotations

import _thread
import json
import os
import sys
import threading
from typing import Any

_PLAIN = (__file__, threading.__file__)
_to = os.open(os.environ["LOCK_ORDER"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
_noted: set[tuple[str, str]] = set()
_mine = threading.local()


class Lock:
    """A lock that records the locks held when it is acquired."""

    _make: Any = _thread.allocate_lock

    def __init__(self) -> None:
        self._lock = self._make()
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename in _PLAIN:
            frame = frame.f_back
        self.site = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        self._holder: list[Lock] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        held = _held()
        if blocking and self not in held:  # a thread that holds it or does not wait cannot deadlock
            for other in held:
                _note(other.site, self.site)
        taken: bool = self._lock.acquire(blocking, timeout)
        if taken:
            self._holder = held
            held.append(self)
        return taken

    def release(self) -> None:
        holder = self._holder  # another thread may release it
        self._lock.release()
        if self in holder:
            holder.remove(self)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __getattr__(self, name: str) -> Any:
        if name == "_lock":
            raise AttributeError(name)
        return getattr(self._lock, name)


class PlainLock(Lock):
    """threading.Lock."""


class ReentrantLock(Lock):
    """threading.RLock, with the methods that a Condition calls."""

    _make = _thread.RLock

    def _release_save(self) -> tuple[Any, int]:
        held, times = _held(), _held().count(self)
        held[:] = [lock for lock in held if lock is not self]
        return self._lock._release_save(), times

    def _acquire_restore(self, state: tuple[Any, int]) -> None:
        inner, times = state
        held = _held()
        for other in held:
            _note(other.site, self.site)
        self._lock._acquire_restore(inner)
        self._holder = held
        held += [self] * times


def _held() -> list[Lock]:
    """Return the locks of this thread in the order of their acquisition."""
    try:
        held: list[Lock] = _mine.held
    except AttributeError:
        held = _mine.held = []
    return held


def _note(held: str, asked: str) -> None:
    if (held, asked) not in _noted:
        _noted.add((held, asked))
        os.write(_to, json.dumps([held, asked]).encode() + b"\n")


threading.Lock = PlainLock  # type: ignore[misc,assignment]
threading.RLock = ReentrantLock  # type: ignore[assignment]
