"""Choose the execution provider of ONNX Runtime that runs the model, and verify every session on it.

ONNX Runtime falls back to the CPU in five cases without an error. The provider is not installed, or its library does
not load. It fails to create a session or in a run, or it has no kernel for a node. Here each is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.errors import ProviderError, StartError
from service.inference import built_in, plugins
from service.inference.built_in import CUDA, BuiltInProvider
from service.inference.onnx_outputs import keep_outputs
from service.inference.plugins import PluginProvider
from service.inference.sessions import OUTPUTS, DeviceSession, check_answers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnxruntime import InferenceSession
    from structlog.typing import FilteringBoundLogger


AUTO, CPU = "auto", "cpu"


class SessionFactory:
    """Creates the sessions of a process, all on the provider `name`, as `--provider` spells it.

    With `auto` the first session selects CUDA if it works completely, else the GPU of a plugin, else the CPU. Later
    sessions use the same, so that no model moves to the CPU while it serves. `library` is that of a plugin; `device_id`
    is the number of the provider's device. `memory_limit` is in bytes, 0 for none; `max_batch_size` is the maximum of
    images in a run. Raises StartError for an unknown provider, and if two builds of ONNX Runtime are installed.
    """

    def __init__(
        self,
        name: str,
        log: FilteringBoundLogger,
        *,
        options: Mapping[str, str] | None = None,
        library: str = "",
        device_id: int = 0,
        memory_limit: int = 0,
        max_batch_size: int = 1,
    ) -> None:
        built_in.check_one_build()
        self.name = name
        self._log = log
        self._user_options = dict(options or {})
        self._library = library
        self._device_id = device_id
        self._memory_limit = memory_limit
        self._max_batch_size = max_batch_size
        self._provider: BuiltInProvider | PluginProvider | None = None
        if name not in (AUTO, *built_in.known(), *plugins.PACKAGES) and plugins.find(name, library) is None:
            raise StartError(
                f"--provider (or DIGITS_PROVIDER) is {name!r}; expected auto, "
                f"{', '.join(sorted({*built_in.known(), *plugins.PACKAGES}))}, or a plugin's with --provider-library"
            )

    @property
    def is_on_gpu(self) -> bool:
        """Whether the provider computes on a GPU, according to its name, device and options."""
        on_gpu = self._provider is not None and self._provider.is_on_gpu
        return on_gpu or self._user_options.get("device_type", "").startswith("GPU")

    @property
    def is_on_nvidia(self) -> bool:
        """Whether the provider computes on an NVIDIA GPU."""
        return self._provider is not None and self._provider.is_on_nvidia

    def create(self, content: bytes, cpu_session: InferenceSession) -> DeviceSession | InferenceSession:
        """Create a session of the model `content` on the provider; `cpu_session`, if the provider is the CPU.

        Raises ProviderError unless every node is the provider's and the answers are those of `cpu_session`.
        """
        if self.name == AUTO:
            return self._choose(content, cpu_session)
        if self.name == CPU:
            return cpu_session
        if self._provider is None:
            self._provider = self._resolve()
        return self._create_verified(self._provider, content, cpu_session)

    def _choose(self, content: bytes, cpu_session: InferenceSession) -> DeviceSession | InferenceSession:
        reasons, severity = [], 0  # who did not install for a GPU need not read of it
        for name in self._candidates():
            try:
                self._provider = self._resolve_gpu(name)
                session = self._create_verified(self._provider, content, cpu_session)
            except ProviderError as e:
                reasons.append(f"{name} cannot be used: {e.reason}")
                severity = max(severity, 2 if name == CUDA or self._provider is not None else 1)
                self._provider = None
            else:
                reason = "; ".join([*reasons, "it has every node and answers as the CPU does"])
                self._log.info("provider chosen", provider=name, reason=reason)
                self.name = name
                return session
        self.name = CPU
        write = (self._log.debug, self._log.info, self._log.warning)[severity]
        write("provider chosen", provider=CPU, reason="; ".join(reasons) or built_in.not_built_in(CUDA))
        return cpu_session

    def _candidates(self) -> Iterator[str]:
        """The providers that `auto` tries, in this order."""
        if built_in.is_built_in(CUDA):
            yield CUDA
        for plugin in plugins.installed():
            yield from plugin.providers

    def _resolve_gpu(self, name: str) -> BuiltInProvider | PluginProvider:
        self._provider = None
        provider = BuiltInProvider(name) if name == CUDA else self._resolve(name)
        if not provider.is_on_gpu:
            raise ProviderError(name, "its device is no GPU; name it to use it")
        return provider

    def _resolve(self, name: str = "") -> BuiltInProvider | PluginProvider:
        """Find the provider. A plugin comes first: once registered, ONNX Runtime lists it as if it were built in."""
        name = name or self.name
        plugin = plugins.find(name, self._library)
        return BuiltInProvider(name) if plugin is None else PluginProvider(name, plugin, self._device_id)

    def _create_verified(
        self, provider: BuiltInProvider | PluginProvider, content: bytes, cpu_session: InferenceSession
    ) -> DeviceSession:
        # Compiled providers, as OpenVINO's is, take no graph that gives out its own weights.
        session = provider.create(keep_outputs(content, OUTPUTS), self._options(provider))
        check_answers(provider.name, session, cpu_session, self._max_batch_size)
        return session

    def _options(self, provider: BuiltInProvider | PluginProvider) -> dict[str, str]:
        options: dict[str, str] = {"use_tf32": "0"} if provider.name == CUDA else {}
        if self._device_id and isinstance(provider, BuiltInProvider):  # a plugin is given the device itself
            options["device_id"] = str(self._device_id)
        if self._memory_limit:
            options["gpu_mem_limit"] = str(self._memory_limit)
        return {**options, **self._user_options}
