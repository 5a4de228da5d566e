"""Execution providers that are built into the installed ONNX Runtime: CUDA in onnxruntime-gpu, and their like."""

from __future__ import annotations

import contextlib
import io
import os
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING

import onnxruntime as ort

from service.errors import ProviderError, StartError
from service.inference import plugins, provider_diagnostics
from service.inference.plugins import short_name
from service.inference.sessions import DeviceSession, check_nodes, device_session_options, missing_kernels

if TYPE_CHECKING:
    from collections.abc import Mapping

CUDA = "cuda"

_NVIDIA = frozenset({"cuda", "tensorrt"})
_GPU = _NVIDIA | {"migraphx", "dml", "webgpu"}

_DISTRIBUTIONS = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
    "dml": "onnxruntime-directml",
    "migraphx": "onnxruntime-migraphx",
    "qnn": "onnxruntime-qnn",
}
"""The package of each provider; all have the same import package, so only one can be installed."""


class BuiltInProvider:
    """The execution provider `name` of this build of ONNX Runtime. Raises ProviderError if the build has none."""

    def __init__(self, name: str) -> None:
        if not is_built_in(name):
            raise ProviderError(name, not_built_in(name))
        self.name = name
        self.id = full_name(name)
        self.is_on_gpu = name in _GPU
        self.is_on_nvidia = name in _NVIDIA

    def create(self, content: bytes, options: Mapping[str, str]) -> DeviceSession:
        """Create a session of the model `content`. Raises ProviderError unless the provider runs every node."""
        if self.is_on_nvidia:
            _preload_cuda()
        ort.set_default_logger_severity(4)  # its output, in another format, is in the exceptions too
        try:
            session = ort.InferenceSession(
                content, device_session_options(), providers=[(self.id, dict(options))], enable_fallback=0
            )
        except Exception as e:
            raise ProviderError(self.name, self._explain(content, options, str(e))) from e
        session.disable_fallback()
        self._check_options(session, options)
        check_nodes(self.name, session, self.id)
        return DeviceSession(lambda: session)

    def _check_options(self, session: ort.InferenceSession, options: Mapping[str, str]) -> None:
        effective = session.get_provider_options().get(self.id) or options
        if ignored := sorted(set(options) - set(effective)):
            raise ProviderError(self.name, f"it has no option {', '.join(ignored)}: see --provider-options")

    def _explain(self, content: bytes, options: Mapping[str, str], message: str) -> str:
        if "assigned to the default CPU EP" not in message:
            return provider_diagnostics.explain(message)
        # The provider left the model to the CPU. It has no kernel for a node, or its library did not load, which ONNX
        # Runtime only writes to standard error.
        output, operators = provider_diagnostics.probe(self.id, content, dict(options))
        return provider_diagnostics.explain(output) if output else missing_kernels(operators)


def available() -> list[str]:
    """The providers that this build of ONNX Runtime has, as `--provider` spells them."""
    return sorted(map(short_name, set(ort.get_available_providers()) - plugins.registered()))


def is_built_in(name: str) -> bool:
    """Whether this build of ONNX Runtime has the provider."""
    return name in available()


def known() -> list[str]:
    """The providers that any build of ONNX Runtime has, as `--provider` spells them."""
    return sorted(map(short_name, ort.get_all_providers()))


def full_name(name: str) -> str:
    """ONNX Runtime's name of a provider that `known` lists."""
    return next(str(provider) for provider in ort.get_all_providers() if short_name(provider) == name)


def not_built_in(name: str) -> str:
    """Return why a provider that this build lacks is unusable, and its package."""
    if name in plugins.PACKAGES:
        return f"no plugin that has it is installed: pip install {plugins.PACKAGES[name]}, or give --provider-library"
    lacks = f"the {ort.package_name} {ort.__version__} that is installed has only {', '.join(available())}"
    if name in _NVIDIA:
        return f"{lacks}: `make gpu` installs onnxruntime-gpu in an environment of its own"
    instead = _DISTRIBUTIONS.get(name, "a build that has it")
    return f"{lacks}: install {instead} in place of it"


def check_one_build() -> None:
    """Raise StartError if two builds of ONNX Runtime are installed."""
    builds = [name for name in ("onnxruntime", *sorted(set(_DISTRIBUTIONS.values()))) if _is_installed(name)]
    if len(builds) > 1:
        raise StartError(
            f"{' and '.join(builds)} are both installed and have overwritten each other's files: "
            f"`pip uninstall {' '.join(builds)}`, then install the one that you want"
        )


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _preload_cuda() -> None:
    """Load NVIDIA's libraries from their wheels; number devices as nvidia-smi does."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints missing libraries, which the session reports
        ort.preload_dlls()
