"""Who works on the shards: processes of this machine, or Ray Data's workers on any."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from digitserve.score.errors import ScoreError
from digitserve.score.writing import Job, Scored, Scorer
from ray_serve.connection import NO_ANSWER, connection_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from digitserve.score.inputs import Shard

OBJECT_STORE = 100_000_000
"""Bytes: only shards' numbers and counts pass through it, the pixels never do."""

_job: Job | None = None
_scorer: Scorer | None = None
"""The scorer of each process of the pool; its first shard loads the model, so that errors are reported as usual."""


def has_ray() -> bool:
    """Whether Ray Data is installed."""
    return find_spec("ray") is not None


def local(job: Job, shards: list[Shard], workers: int) -> Iterator[Scored]:
    """Each shard as it is done, by so many processes; with one worker by this process itself."""
    if workers == 1:
        scorer = Scorer(job)
        yield from map(scorer.score, shards)
        return
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawned, initializer=_begin, initargs=(job,)) as pool:
        remaining = iter(shards)
        under_way: set[Future[Scored]] = set()
        try:
            # A few ahead alone: a run of a million shards holds no million futures.
            for shard in remaining:
                with _ctrl_c_held():
                    under_way.add(pool.submit(_score, shard))
                if len(under_way) >= 2 * workers:
                    finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
            while under_way:
                finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        except BrokenProcessPool:
            raise ScoreError(
                "a worker was killed, perhaps by a lack of memory; run the same command again to resume"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def by_ray(job: Job, shards: list[Shard], workers: int, address: str) -> Iterator[Scored]:
    """Each shard as it is done, by so many actors of Ray Data; without `address` on a Ray of this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of a future change
    if address and (reason := connection_error(address)):
        raise ScoreError(f"--ray-address is {address!r}: {reason}")
    import ray  # noqa: PLC0415 (an extra)
    import ray.data  # noqa: PLC0415

    data: Any = ray.data
    alone = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        # Without "local" Ray would use the last cluster of this machine.
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else alone))
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as e:
        raise ScoreError(f"--ray-address is {address or 'local'!r}: {NO_ANSWER}") from e
    try:
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        tasks = data.from_items([{"shard": pickle.dumps(shard)} for shard in shards], override_num_blocks=len(shards))
        scored = tasks.map_batches(
            _RayScorer,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=workers),
            num_cpus=1,
        )
        for row in scored.iter_rows():
            yield Scored(int(row["number"]), int(row["rows"]), int(row["rejected"]))
    except ray.exceptions.RayError as e:
        cause = getattr(e, "cause", None)
        if isinstance(cause, ScoreError):
            raise cause from None
        last = str(e).strip().rsplit("\n", 1)[-1]
        raise ScoreError(f"Ray failed: {last}; run the same command again to resume") from None
    finally:
        ray.shutdown()


@contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Ctrl-C comes after this: a process that is begun here never has one of its own, and is begun to its end.

    The new process inherits the mask; the handler is for this one's other threads, which then receive the signal.
    """
    pressed = list[int]()
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)


class _RayScorer:
    """The callable of Ray Data for each batch of one shard."""

    def __init__(self, job: Job) -> None:
        self._scorer = Scorer(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        scored = [self._scorer.score(pickle.loads(shard)) for shard in batch["shard"]]  # noqa: S301 (of this run)
        return {name: [getattr(one, name) for one in scored] for name in Scored._fields}


def _begin(job: Job) -> None:
    """Initialise each process. It must end with its parent, before the next run; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    global _job  # noqa: PLW0603 (a pool's processes have no other place for their state)
    _job = job
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _score(shard: Shard) -> Scored:
    global _scorer  # noqa: PLW0603 (as above)
    assert _job is not None
    _scorer = _scorer or Scorer(_job)
    return _scorer.score(shard)
