"""Batching: every request gets exactly its own rows, and requests without a client do not run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ANSWERS_WITHIN, until
from gated_model import Held
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.errors import DeadlineExceeded, Overloaded
from service.inference.model import Model
from service.observability.metrics import Metrics
from service.observability.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from service.network import Predictions


@pytest.fixture(scope="module")
def model(model_path: Path) -> Model:
    return Model(model_path)


def make(model: Any, **options: int) -> tuple[Batcher, CollectorRegistry]:
    registry = CollectorRegistry()
    limits = {"max_batch_size": 1024, "max_queued_images": 100_000, "inline": 0, **options}
    return Batcher(model, Metrics(registry), Statistics(), **limits), registry


def images(*firsts: int) -> np.ndarray:
    """Create different images: `firsts` are their first bytes, so that each has its own answer."""
    pixels = np.random.default_rng(firsts[0]).integers(0, 256, (len(firsts), 784), np.uint8)
    pixels[:, 0] = [first % 256 for first in firsts]
    return pixels


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60), inline=st.sampled_from([0, 8, 64]))
@settings(max_examples=30, deadline=None)
def test_concurrent_requests_get_their_own_rows(model: Model, sizes: list[int], inline: int) -> None:
    async def check() -> None:
        batcher, _ = make(model, inline=inline, max_batch_size=64)
        requests = [images(*range(i, i + n)) for i, n in enumerate(sizes)]
        replies = await asyncio.gather(*(batcher.predict(pixels) for pixels in requests))
        for pixels, reply in zip(requests, replies, strict=True):
            np.testing.assert_allclose(reply.activations, model.predict(pixels).activations, rtol=0, atol=1e-6)
            assert reply.digit.shape == (len(pixels),)
        await batcher.close()

    asyncio.run(check())


async def test_thousands_of_concurrent_requests_get_their_own_rows(model: Model) -> None:
    batcher, registry = make(model)
    requests = [images(*range(i, i + 1 + i % 7)) for i in range(3000)]
    replies = await asyncio.gather(*(batcher.predict(pixels) for pixels in requests))
    for pixels, reply in zip(requests, replies, strict=True):
        np.testing.assert_allclose(reply.activations, model.predict(pixels).activations, rtol=0, atol=1e-6)
    runs = registry.get_sample_value("digits_inference_seconds_count")
    assert runs is not None
    assert runs < 100, "3,000 concurrent requests are a few batches, not 3,000 runs"
    await batcher.close()


async def test_requests_that_arrive_while_the_model_is_busy_become_one_batch(model: Model) -> None:
    held = Held(model)
    batcher, _ = make(held)
    first = asyncio.create_task(batcher.predict(images(1)))
    await until(lambda: held.sizes == [1])
    rest = [asyncio.create_task(batcher.predict(images(i))) for i in range(2, 12)]
    await asyncio.sleep(0.05)
    held.go.set()
    await asyncio.gather(first, *rest)
    assert held.sizes == [1, 10]
    await batcher.close()


async def test_a_small_request_to_an_idle_model_runs_at_once(model: Model) -> None:
    batcher, _ = make(model, inline=8)
    coroutine = batcher.predict(images(1, 2))
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)  # completes in one step, so it did not wait
    assert ended.value.value.digit.shape == (2,)
    await batcher.close()


async def test_concurrent_small_requests_are_gathered(model: Model) -> None:
    held = Held(model)
    held.go.set()
    batcher, _ = make(held, inline=128)
    for _ in range(10):
        await asyncio.gather(*(batcher.predict(images(i)) for i in range(50)))
    assert held.sizes[-5:] == [50] * 5
    requests = [images(*range(i, i + 1 + i % 5)) for i in range(40)]
    replies = await asyncio.gather(*(batcher.predict(pixels) for pixels in requests))
    for pixels, reply in zip(requests, replies, strict=True):
        np.testing.assert_allclose(reply.activations, model.predict(pixels).activations, rtol=0, atol=1e-6)
    await batcher.close()


async def test_single_requests_run_at_once_again_after_concurrent_ones(model: Model) -> None:
    batcher, _ = make(model, inline=128)
    for _ in range(10):
        await asyncio.gather(*(batcher.predict(images(i)) for i in range(50)))
    await batcher.predict(images(1))  # waits for more requests, until its timeout
    coroutine = batcher.predict(images(1))
    with pytest.raises(StopIteration):
        coroutine.send(None)
    await batcher.close()


async def test_a_request_with_a_short_deadline_ends_the_gathering(model: Model) -> None:
    batcher, _ = make(model, inline=128)
    for _ in range(100):  # a busy machine can delay it
        for _ in range(10):
            await asyncio.gather(*(batcher.predict(images(i)) for i in range(50)))
        with contextlib.suppress(DeadlineExceeded):
            await batcher.predict(images(1), deadline=time.monotonic() + 0.004)  # the target is 50, for 5 ms
            break
    else:
        pytest.fail("no answer within the deadline")
    await batcher.close()


async def test_gathering_ends_while_requests_keep_arriving(model: Model) -> None:
    """A request arrives in every iteration of the event loop, which must not extend the wait."""
    batcher, _ = make(model, inline=100_000, max_batch_size=100_000)
    await asyncio.gather(*(batcher.predict(images(i)) for i in range(300)))
    tasks: list[asyncio.Task[Predictions]] = []

    def answered() -> bool:
        return any(task.done() for task in tasks)

    ends = time.monotonic() + ANSWERS_WITHIN
    while not answered() and time.monotonic() < ends:
        tasks.append(asyncio.create_task(batcher.predict(images(len(tasks)))))
        await asyncio.sleep(0)
    assert answered()
    await asyncio.gather(*tasks)
    await batcher.close()


async def test_a_failed_run_of_gathered_requests_fails_each_of_them_and_no_other(model: Model) -> None:
    held = Held(model)
    held.go.set()
    batcher, _ = make(held, inline=128)
    for _ in range(10):
        await asyncio.gather(*(batcher.predict(images(i)) for i in range(50)))
    held.fail = {30}
    failed = await asyncio.gather(*(batcher.predict(images(i)) for i in range(30)), return_exceptions=True)
    assert all(isinstance(error, RuntimeError) for error in failed)
    assert len(await asyncio.gather(*(batcher.predict(images(i)) for i in range(20)))) == 20
    await batcher.close()


async def test_a_large_request_runs_the_gathered_requests_too(model: Model) -> None:
    held = Held(model)
    held.go.set()
    batcher, _ = make(held, inline=8)
    for _ in range(100):
        await asyncio.gather(*(batcher.predict(images(i)) for i in range(5)))
    replies = await asyncio.gather(*(batcher.predict(images(*range(n))) for n in (1, 2, 20, 3)))
    assert [len(reply.digit) for reply in replies] == [1, 2, 20, 3]
    await batcher.close()


async def test_close_answers_gathered_requests(model: Model) -> None:
    batcher, _ = make(model, inline=128)
    for _ in range(10):
        await asyncio.gather(*(batcher.predict(images(i)) for i in range(50)))
    last = asyncio.create_task(batcher.predict(images(1)))
    await asyncio.sleep(0)
    await batcher.close()
    assert (await last).digit.shape == (1,)


async def test_a_batch_is_one_run_and_counts_each_request(model: Model) -> None:
    batcher, registry = make(model, inline=8)
    pixels = images(*range(6))
    predictions = batcher.run_batch(pixels, 3)
    assert predictions is not None
    np.testing.assert_array_equal(predictions.activations, model.predict(pixels).activations)
    assert registry.get_sample_value("digits_batch_size_count") == 1
    assert registry.get_sample_value("digits_queue_seconds_count") == 3
    assert batcher.statistics.compute_infer.count == batcher.statistics.queue.count == 3
    await batcher.close()


async def test_a_batch_does_not_run_if_it_is_too_large_or_the_model_is_busy(model: Model) -> None:
    held = Held(model)
    batcher, _ = make(held, inline=8, max_batch_size=7)
    assert batcher.run_batch(images(*range(8)), 2) is None
    busy = asyncio.create_task(batcher.predict(images(*range(9))))
    await until(lambda: held.sizes == [9])
    assert batcher.run_batch(images(1, 2), 2) is None
    held.go.set()
    await busy
    assert batcher.run_batch(images(1, 2), 2) is not None
    await batcher.close()


async def test_a_run_keeps_the_batch_limit_and_splits_no_request(model: Model) -> None:
    held = Held(model)
    batcher, _ = make(held, max_batch_size=10)
    tasks = [asyncio.create_task(batcher.predict(images(*range(n)))) for n in (4, 4, 4, 9, 1, 10)]
    await asyncio.sleep(0.05)
    held.go.set()
    await asyncio.gather(*tasks)
    assert held.sizes == [8, 4, 10, 10]
    await batcher.close()


async def test_a_cancelled_request_does_not_run(model: Model) -> None:
    held = Held(model)
    batcher, registry = make(held)
    first = asyncio.create_task(batcher.predict(images(1)))
    await until(lambda: held.sizes == [1])
    cancelled = asyncio.create_task(batcher.predict(images(2, 3)))
    other = asyncio.create_task(batcher.predict(images(4)))
    await asyncio.sleep(0.05)
    cancelled.cancel()
    await asyncio.sleep(0)
    held.go.set()
    await asyncio.gather(first, other)
    assert held.sizes == [1, 1]
    assert cancelled.cancelled()
    assert registry.get_sample_value("digits_requests_dropped_total", {"reason": "cancelled"}) == 1
    assert registry.get_sample_value("digits_queue_images") == 0
    await batcher.close()


async def test_a_request_whose_deadline_passes_in_the_queue_does_not_run(model: Model) -> None:
    held = Held(model)
    batcher, registry = make(held)
    first = asyncio.create_task(batcher.predict(images(1)))
    await until(lambda: held.sizes == [1])
    late_request = asyncio.create_task(batcher.predict(images(2, 3), time.monotonic() + 0.3))
    await asyncio.sleep(0.5)
    held.go.set()
    with pytest.raises(DeadlineExceeded):
        await late_request
    await first
    assert held.sizes == [1]
    assert registry.get_sample_value("digits_requests_dropped_total", {"reason": "deadline"}) == 1
    await batcher.close()


async def test_an_expired_deadline_is_rejected_at_once(model: Model) -> None:
    batcher, _ = make(model, inline=8)
    with pytest.raises(DeadlineExceeded):
        await batcher.predict(images(1), time.monotonic() - 1)
    await batcher.close()


async def test_a_full_queue_rejects_with_a_retry_delay(model: Model) -> None:
    held = Held(model)
    batcher, registry = make(held, max_queued_images=10)
    first = asyncio.create_task(batcher.predict(images(1)))
    await until(lambda: held.sizes == [1])
    waiting = asyncio.create_task(batcher.predict(images(*range(8))))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="queue full: 8 images queued, limit 10") as refused:
        await batcher.predict(images(1, 2, 3))
    assert refused.value.retry_after > 0
    assert registry.get_sample_value("digits_queue_images") == 8
    held.go.set()
    await asyncio.gather(first, waiting)
    assert registry.get_sample_value("digits_requests_dropped_total", {"reason": "overloaded"}) == 1
    await batcher.close()


async def test_a_failed_run_fails_only_its_own_requests(model: Model) -> None:
    held = Held(model)
    held.fail = {5}
    batcher, _ = make(held, max_batch_size=5)
    good = asyncio.create_task(batcher.predict(images(1)))
    await until(lambda: held.sizes == [1])
    bad = asyncio.create_task(batcher.predict(images(*range(5))))
    after = asyncio.create_task(batcher.predict(images(2)))
    await asyncio.sleep(0)
    held.go.set()
    with pytest.raises(RuntimeError, match="device lost"):
        await bad
    assert (await good).digit.shape == (await after).digit.shape == (1,)
    await batcher.close()


async def test_close_answers_queued_requests(model: Model) -> None:
    held = Held(model)
    batcher, _ = make(held)
    tasks = [asyncio.create_task(batcher.predict(images(i))) for i in range(5)]
    await asyncio.sleep(0.02)
    held.go.set()
    await batcher.close()
    assert len(await asyncio.gather(*tasks)) == 5
