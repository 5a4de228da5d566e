"""ONNX Runtime sessions of the model: their options, and the checks that one on a device passes before it serves."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from service.errors import ProviderError
from service.inference import provider_diagnostics
from service.network import PIXELS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

TOLERANCE = 1e-4
"""Largest difference of an activation from the CPU's, absolute and relative: float32 in another order, no TF32."""

OUTPUTS = ("digit", "activations", "layer1", "layer2")


class DeviceSession:
    """A session on a device, which `close` frees at once, in spite of remaining references.

    `lock` is for a device that all sessions of the process share: only one thread may use them.
    """

    def __init__(
        self, create: Callable[[], ort.InferenceSession], lock: AbstractContextManager[object] | None = None
    ) -> None:
        self._lock = lock or nullcontext()
        self._session: Any = None
        with self._lock:
            self._session = create()

    def run(self, output_names: Sequence[str], input_feed: dict[str, Any]) -> list[Any]:
        """Compute the outputs. Its exceptions have no reference to ONNX Runtime's session."""
        with self._lock:
            if self._session is None:
                raise RuntimeError("the session is closed")
            try:
                return list(self._session.run(output_names, input_feed))
            except Exception as e:  # noqa: BLE001 (raised below)
                error = e.with_traceback(None)
        try:
            raise error
        finally:
            del error

    def get_providers(self) -> list[str]:
        """The execution providers, the one that runs the model first."""
        return list(self._session.get_providers())

    def close(self) -> None:
        """Free the session; later runs fail."""
        with self._lock:
            self._session = None

    def __del__(self) -> None:
        self.close()


def create_cpu_session(content: bytes) -> ort.InferenceSession:
    """Create a session on the CPU: one thread, no spinning. A run takes microseconds, as a hand-over would."""
    return ort.InferenceSession(content, session_options(), providers=["CPUExecutionProvider"], enable_fallback=0)


def session_options() -> ort.SessionOptions:
    """One thread, no spinning, errors in exceptions alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def device_session_options(*, cpu_fallback: bool = False) -> ort.SessionOptions:
    """As `session_options`; creation fails if a node would run on the CPU, unless `cpu_fallback`."""
    options = session_options()
    options.log_severity_level = 4  # its output, in another format, is in the exceptions too
    if not cpu_fallback:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def operators_elsewhere(session: ort.InferenceSession, provider: str) -> list[str]:
    """The operators of the model that another execution provider than `provider` runs."""
    return sorted(
        {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name != provider
            for node in part.get_nodes()
        }
    )


def missing_kernels(operators: list[str]) -> str:
    """Why a provider that leaves these operators to the CPU is rejected."""
    return f"it has no kernel for {', '.join(operators) or 'any node'} of the model, which the CPU would have run"


def check_nodes(name: str, session: ort.InferenceSession, provider: str) -> None:
    """ProviderError unless the provider runs every node."""
    elsewhere = operators_elsewhere(session, provider)
    if elsewhere or session.get_providers()[0] != provider:
        raise ProviderError(name, missing_kernels(elsewhere))


def check_answers(name: str, session: DeviceSession, cpu_session: ort.InferenceSession, max_batch_size: int) -> None:
    """ProviderError unless both answer alike: blank images and noise of any density, in batches of three sizes."""
    random = np.random.default_rng(784)
    noise = random.integers(0, 256, (64, PIXELS)) * (random.random((64, PIXELS)) < random.random((64, 1)))
    for n in sorted({1, 64, max_batch_size}):
        pixels = np.resize(noise.astype(np.uint8), (n, PIXELS))
        pixels[0] = 0
        expected = cpu_session.run(OUTPUTS, {"pixels": pixels})
        try:
            actual = session.run(OUTPUTS, {"pixels": pixels})
        except Exception as e:
            raise ProviderError(name, f"a batch of {n} cannot run: {provider_diagnostics.explain(str(e))}") from e
        for output, ours, theirs in zip(OUTPUTS[1:], actual[1:], expected[1:], strict=True):
            # Written so that NaN is not close either.
            if not np.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE):
                furthest = np.abs(ours - theirs).max()
                raise ProviderError(
                    name, f"its {output} differ by {furthest:.2g} from the CPU's; at most {TOLERANCE:g} may be"
                )
        if not (np.take_along_axis(actual[1], actual[0][:, None], 1)[:, 0] >= actual[1].max(axis=1)).all():
            raise ProviderError(name, "its digit is not that of the largest activation")
