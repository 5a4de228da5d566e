"""Which execution provider of ONNX Runtime runs the model: chosen, held to, or refused with what it lacks.

Left to itself ONNX Runtime ends on the CPU in five ways without an error: the provider is not built in; its library
does not load; it fails while a session is made; it fails in a run; it has no kernel for a node. Here each is an error.
"""

from __future__ import annotations

import contextlib
import io
import os
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from service.errors import ProviderError, StartError
from service.inference import provider_diagnostics
from service.inference.onnx_outputs import keep_outputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import FilteringBoundLogger

AUTO, CPU, CUDA = "auto", "cpu", "cuda"

TOLERANCE = 1e-4
"""How far an activation may be from the CPU's, absolutely and for its size: float32 in another order, no TF32."""

OUTPUTS = ("digit", "activations", "layer1", "layer2")

_DISTRIBUTIONS = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
    "dml": "onnxruntime-directml",
    "migraphx": "onnxruntime-migraphx",
    "qnn": "onnxruntime-qnn",
}
"""What to install for a provider; every one of them is the same import package, so that one alone may be there."""

NVIDIA_PROVIDERS = frozenset({"cuda", "tensorrt"})
_GPU_PROVIDERS = NVIDIA_PROVIDERS | {"migraphx", "dml", "webgpu"}


class SessionFactory:
    """Makes the sessions of a process, all on the provider `name`, as `--provider` spells it.

    With `auto` the first session decides: CUDA if all of it works, else the CPU; later ones must be on the same, so
    that nothing moves to the CPU while it serves. `memory_limit` is in bytes, 0 for none; `max_batch_size` is the most
    images of a run. Raises StartError for an unknown provider, and where two builds of ONNX Runtime are
    installed.
    """

    def __init__(
        self,
        name: str,
        log: FilteringBoundLogger,
        *,
        options: Mapping[str, str] | None = None,
        device_id: int = 0,
        memory_limit: int = 0,
        max_batch_size: int = 1,
    ) -> None:
        _check_one_build()
        known = sorted(map(short_name, ort.get_all_providers()))
        if name not in (AUTO, *known):
            raise StartError(
                f"--provider (or DIGITS_PROVIDER) is {name!r}; ONNX Runtime {ort.__version__} knows "
                f"auto, {', '.join(known)}"
            )
        self.name = name
        self._log = log
        self._user_options = dict(options or {})
        self._device_id = device_id
        self._memory_limit = memory_limit
        self._max_batch_size = max_batch_size

    @property
    def is_on_gpu(self) -> bool:
        """Whether what it chose computes on a GPU, as far as can be told from its name and options."""
        return self.name in _GPU_PROVIDERS or self._user_options.get("device_type", "").startswith("GPU")

    def create(self, content: bytes, cpu_session: ort.InferenceSession) -> ort.InferenceSession:
        """Create a session of the model `content` on the provider; `cpu_session`, if the provider is the CPU.

        Raises ProviderError unless every node is the provider's and the answers are those of `cpu_session`.
        """
        if self.name == AUTO:
            return self._choose(content, cpu_session)
        return cpu_session if self.name == CPU else self._create_verified(self.name, content, cpu_session)

    def _choose(self, content: bytes, cpu_session: ort.InferenceSession) -> ort.InferenceSession:
        if not _is_built_in(CUDA):  # nobody who installed the CPU's build wonders
            self._log.debug("provider chosen", provider=CPU, reason=_not_built_in(CUDA))
            self.name = CPU
            return cpu_session
        try:
            session = self._create_verified(CUDA, content, cpu_session)
        except ProviderError as e:
            self._log.warning("provider chosen", provider=CPU, reason=f"cuda cannot be used: {e.reason}")
            self.name = CPU
            return cpu_session
        self._log.info("provider chosen", provider=CUDA, reason="it has every node and answers as the CPU does")
        self.name = CUDA
        return session

    def _create_verified(self, name: str, content: bytes, cpu_session: ort.InferenceSession) -> ort.InferenceSession:
        if not _is_built_in(name):
            raise ProviderError(name, _not_built_in(name))
        if name in NVIDIA_PROVIDERS:
            _preload_cuda()
        # Compiled providers, as OpenVINO's is, take no graph that gives out its own weights.
        graph, options = keep_outputs(content, OUTPUTS), self._options(name)
        session = _create_without_fallback(name, graph, options)
        effective = session.get_provider_options().get(_provider_id(name)) or options
        if ignored := sorted(set(options) - set(effective)):
            raise ProviderError(name, f"it has no option {', '.join(ignored)}: look at --provider-options")
        elsewhere = {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name != _provider_id(name)
            for node in part.get_nodes()
        }
        if elsewhere or session.get_providers()[0] != _provider_id(name):
            raise ProviderError(name, _missing_kernels(sorted(elsewhere)))
        _check_answers(name, session, cpu_session, self._max_batch_size)
        return session

    def _options(self, name: str) -> dict[str, str]:
        options: dict[str, str] = {"use_tf32": "0"} if name == CUDA else {}
        if self._device_id:
            options["device_id"] = str(self._device_id)
        if self._memory_limit:
            options["gpu_mem_limit"] = str(self._memory_limit)
        return {**options, **self._user_options}


def create_cpu_session(content: bytes) -> ort.InferenceSession:
    """A session on the CPU: one thread, no spinning. A run takes microseconds, which a hand-over would cost too."""
    return ort.InferenceSession(content, _session_options(), providers=[_provider_id(CPU)], enable_fallback=0)


def _create_without_fallback(name: str, content: bytes, options: dict[str, str]) -> ort.InferenceSession:
    """A session that is refused, not moved to the CPU, neither when made nor in a run nor for a node."""
    ort.set_default_logger_severity(4)  # what it has to say, in a form of its own, is in the exceptions too
    settings = _session_options()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = ort.InferenceSession(content, settings, providers=[(_provider_id(name), options)], enable_fallback=0)
    except Exception as e:
        raise ProviderError(name, _explain_failure(name, content, options, str(e))) from e
    session.disable_fallback()
    return session


def _session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _check_answers(
    name: str, session: ort.InferenceSession, cpu_session: ort.InferenceSession, max_batch_size: int
) -> None:
    """ProviderError unless both answer alike, blank images and noise of any density, in the sizes that traffic has."""
    random = np.random.default_rng(784)
    noise = random.integers(0, 256, (64, 784)) * (random.random((64, 784)) < random.random((64, 1)))
    for n in sorted({1, 64, max_batch_size}):
        pixels = np.resize(noise.astype(np.uint8), (n, 784))
        pixels[0] = 0
        expected = cpu_session.run(OUTPUTS, {"pixels": pixels})
        try:
            found = session.run(OUTPUTS, {"pixels": pixels})
        except Exception as e:
            raise ProviderError(name, f"a batch of {n} cannot run: {provider_diagnostics.explain(str(e))}") from e
        for output, ours, theirs in zip(OUTPUTS[1:], found[1:], expected[1:], strict=True):
            # Written so that NaN is not close either.
            if not np.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE):
                furthest = np.abs(ours - theirs).max()
                raise ProviderError(
                    name, f"its {output} differ by {furthest:.2g} from the CPU's; at most {TOLERANCE:g} may be"
                )
        if not (np.take_along_axis(found[1], found[0][:, None], 1)[:, 0] >= found[1].max(axis=1)).all():
            raise ProviderError(name, "its digit is not that of the largest activation")


def _explain_failure(name: str, content: bytes, options: dict[str, str], text: str) -> str:
    """What a session lacks that could not be made; `text` is what ONNX Runtime raised."""
    if "assigned to the default CPU EP" not in text:
        return provider_diagnostics.explain(text)
    # The provider left it to the CPU: because it could not be loaded, which it says on standard error alone, or because
    # it has no kernel for a node.
    message, operators = provider_diagnostics.probe(_provider_id(name), content, options)
    return provider_diagnostics.explain(message) if message else _missing_kernels(operators)


def _missing_kernels(operators: list[str]) -> str:
    return f"it has no kernel for {', '.join(operators) or 'any node'} of the model, which the CPU would have run"


def _is_built_in(name: str) -> bool:
    return _provider_id(name) in ort.get_available_providers()


def _not_built_in(name: str) -> str:
    instead = _DISTRIBUTIONS.get(name)
    if name in NVIDIA_PROVIDERS:
        how = "`make gpu` installs onnxruntime-gpu in an environment of its own"
    elif instead:
        how = f"install {instead} in place of it"
    else:
        how = "install a build that has it in place of it"
    built = ", ".join(sorted(map(short_name, ort.get_available_providers())))
    return f"the {ort.package_name} {ort.__version__} that is installed has only {built}: {how}"


def _preload_cuda() -> None:
    """Load NVIDIA's libraries from the wheels beside ONNX Runtime; count devices as nvidia-smi does."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses, which the session will tell
        ort.preload_dlls()


def _check_one_build() -> None:
    found = [name for name in ("onnxruntime", *sorted(set(_DISTRIBUTIONS.values()))) if _is_installed(name)]
    if len(found) > 1:
        raise StartError(
            f"{' and '.join(found)} are both installed and have overwritten each other's files: "
            f"`pip uninstall {' '.join(found)}`, then install the one that you want"
        )


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def short_name(provider: str) -> str:
    """As `--provider` spells an execution provider of ONNX Runtime."""
    return provider.removesuffix("ExecutionProvider").lower()


def _provider_id(name: str) -> str:
    return next(str(provider) for provider in ort.get_all_providers() if short_name(provider) == name)
