"""Every option once: its field here is its flag, its DIGITS_ environment variable and its line of `--help`."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsConfigDict

from service.provider_options import parsed_options
from service.unix_socket import parse_address
from service.usage import Parser

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX = "DIGITS_"
"""The prefix of environment variables."""

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]

Kind = TypeVar("Kind", bound=BaseSettings)

_RECEIVER = re.compile(r"https?://([^\s/@?#:\[\]]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}/?")


class Settings(BaseSettings):
    """Serve model.onnx over gRPC, with Prometheus metrics over HTTP.

    Each option can also be set by an environment variable: --metrics-port is DIGITS_METRICS_PORT. A flag wins over
    the environment.

    Exit status: 0 after a clean stop; 1 if the server cannot start; 2 for an invalid option.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        env_ignore_empty=True,
        extra="forbid",
    )

    headings: ClassVar[dict[str, str]] = {
        "Model": "model",
        "gRPC": "host",
        "TLS and tokens": "tls_cert",
        "Execution": "provider",
        "Limits": "max_batch_size",
        "Faults and stopping": "watchdog_timeout",
        "Observability": "metrics_host",
    }
    """The headings of `--help`, each with the first field below it."""

    model: Path = Field(
        Path("model.onnx"),
        description="model file that `python -m export onnx` writes, or a folder of versions: FOLDER/3/model.onnx",
    )
    model_version: str = Field(
        "", pattern="^([1-9][0-9]{0,17})?$", description="version to serve; by default the latest in the folder"
    )
    model_poll: Seconds = Field(
        0.0,
        description="polling interval for another version or file, in seconds; 0 disables (SIGHUP still reloads)",
    )
    model_control: bool = Field(
        False,
        description="allow reloads by RepositoryModelLoad; needs --tokens-file or --tls-client-ca",
    )
    model_sha256: str = Field(
        "", pattern="^([0-9a-f]{64})?$", description="SHA-256 digest that the model file must have"
    )

    host: str = Field(
        "127.0.0.1", min_length=1, description="address of the gRPC port; 0.0.0.0 or :: for all addresses"
    )
    port: Port = Field(50051, description="gRPC port; 0 selects a free port")
    listen: str = Field(
        "",
        description="Unix domain socket of gRPC in addition to host and port, unix:PATH; its mode is 0660, without TLS",
    )
    shared_memory: bool = Field(
        False, description="Triton's system shared memory, for clients on this machine over gRPC"
    )
    http_port: Port | None = Field(None, description="HTTP port, off by default; 0 selects a free port")
    transport: Literal["auto", "native", "grpcio"] = Field(
        "auto", description="gRPC transport; auto selects native, which is faster, if its wheel is installed"
    )
    reflection: bool = Field(
        True, description="gRPC reflection, which replaces the .proto files for grpcurl and similar tools"
    )

    tls_cert: Path | None = Field(
        None, description="certificate chain of the gRPC port in PEM; reloaded when the file changes"
    )
    tls_key: Path | None = Field(
        None, description="private key of the certificate in PEM, without a password; reloaded too"
    )
    tls_client_ca: Path | None = Field(
        None, description="CA certificates in PEM; clients then need a certificate from one of them"
    )
    tokens_file: Path | None = Field(
        None, description="file of bearer tokens, one per line; calls then need one; reloaded when it changes"
    )
    health_without_token: bool = Field(True, description="health checks without a token, if calls need one")

    provider: str = Field(
        "auto",
        pattern="^[a-z0-9-]{1,32}$",
        description="execution provider of the model: cpu, cuda, webgpu, openvino, tensorrt-rtx or another; auto "
        "selects cuda if it works completely, else a plugin's GPU, else cpu",
    )
    provider_library: Path | None = Field(
        None, description="library of a plugin execution provider that no installed package has"
    )
    list_providers: bool = Field(
        False, description="print the execution providers and devices with the reasons why some are unusable, and exit"
    )
    provider_options: str = Field(
        "",
        description="options of the named provider for ONNX Runtime: key=value,key=value or a JSON object",
    )
    device_id: int = Field(0, ge=0, le=1023, description="number of the provider's device, as in --list-providers")
    gpu_memory_limit: str = Field(
        "",
        pattern="^([1-9][0-9]{0,11}(MiB|GiB)?)?$",
        description="maximum GPU memory for tensors, in bytes, MiB or GiB, such as 512MiB; by default unlimited",
    )

    max_batch_size: int = Field(
        1024, ge=1, le=65536, description="maximum number of images in one message and in one run of the model"
    )
    max_queued_images: int = Field(
        65536, ge=1, le=10_000_000, description="maximum number of images in the queue; further calls are rejected"
    )
    inline_images: int | None = Field(
        None,
        ge=0,
        le=65536,
        description="maximum number of images in a run on the transport's own thread; by default 1024 on "
        "grpcio, 128 on native, 0 on a device",
    )
    io_threads: int | None = Field(
        None, ge=1, le=256, description="threads of the native transport; by default half of the CPUs, 1 to 16"
    )

    max_connections: int = Field(
        4096, ge=1, le=1_000_000, description="maximum number of connections; further ones are closed at once"
    )
    max_concurrent_streams: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="maximum number of concurrent calls on one connection; further calls wait at the client",
    )
    max_connection_age: Seconds = Field(
        3600.0, description="maximum connection age before GOAWAY, in seconds, +-10% jitter; 0 disables"
    )
    max_connection_idle: Seconds = Field(
        900.0, description="time without a call before a connection is closed, in seconds; 0 disables"
    )

    watchdog_timeout: Seconds = Field(
        30.0,
        description="time before a hung run of the model or a blocked event loop sets health to NOT_SERVING, in "
        "seconds; 0 disables",
    )
    drain_wait: Seconds = Field(
        0.0, description="time between NOT_SERVING and the end of new calls, in seconds, for load balancers"
    )
    shutdown_grace: Seconds = Field(10.0, description="time for calls in flight when the server stops, in seconds")

    metrics_host: str = Field("127.0.0.1", min_length=1, description="address of /metrics and /healthz")
    metrics_port: Port = Field(9464, description="HTTP port of /metrics and /healthz; 0 takes a free port")
    status_page: bool = Field(True, description="status page at / on the metrics port")
    otlp_endpoint: str = Field(
        "", description="OTLP receiver of traces over gRPC, such as http://localhost:4317; tracing is off without it"
    )
    trace_sample_ratio: float = Field(
        1.0, ge=0, le=1, description="ratio of traced calls, 0 to 1, among calls whose traceparent does not decide"
    )

    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="format of the log; auto is console on a terminal and json elsewhere"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="minimum level of log lines")

    @field_validator("listen")
    @classmethod
    def _is_a_socket(cls, value: str) -> str:
        return f"unix:{parse_address(value)}" if value else value

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_a_receiver(cls, value: str) -> str:
        if value and not _RECEIVER.fullmatch(value):
            raise ValueError(
                "expected http://HOST:PORT, or https://, of an OTLP receiver over gRPC, whose port is 4317"
            )
        return value.rstrip("/")

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        for flag, needed in (("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert")):
            if getattr(self, flag) is not None and getattr(self, needed) is None:
                raise ValueError(f"{_flag(flag)} without {_flag(needed)}; expected both")
        return self

    @model_validator(mode="after")
    def _control_is_for_those_known(self) -> Self:
        if self.model_control and self.tokens_file is None and self.tls_client_ca is None:
            raise ValueError(
                f"{_flag('model_control')} without authentication; "
                f"expected {_flag('tokens_file')} or {_flag('tls_client_ca')}"
            )
        return self

    @field_validator("provider_options")
    @classmethod
    def _are_options(cls, value: str) -> str:
        parsed_options(value)
        return value

    @model_validator(mode="after")
    def _belong_to_a_device(self) -> Self:
        option = f"{_flag('provider')} is {self.provider!r}"
        if self.provider_options and self.provider in ("auto", "cpu"):
            raise ValueError(f"{_flag('provider_options')} without a provider: {option}; expected its name")
        if self.provider_library is not None and self.provider in ("auto", "cpu"):
            raise ValueError(f"{_flag('provider_library')} without a provider: {option}; expected its name")
        if self.gpu_memory_limit and self.provider not in ("auto", "cuda"):
            raise ValueError(f"{_flag('gpu_memory_limit')} without CUDA: {option}; expected auto or cuda")
        if self.device_id and self.provider == "cpu":
            raise ValueError(f"{_flag('device_id')} without a device: {option}; expected another provider")
        return self

    @property
    def gpu_memory_bytes(self) -> int:
        """The limit in bytes; 0 for none."""
        number, unit = re.fullmatch(r"(\d*)(\D*)", self.gpu_memory_limit).groups()  # type: ignore[union-attr]
        return int(number or 0) * {"": 1, "MiB": 2**20, "GiB": 2**30}[unit]

    def described(self) -> dict[str, str | int | float | bool | None]:
        """Every option and its value, for the line that the server logs when it starts."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in self}


class SettingsError(Exception):
    """Invalid options; one line for each, with the flag, the variable, the value and the expectation."""


def load(arguments: list[str]) -> Settings:
    """Return the settings of a command line and the environment.

    Raises SettingsError for an invalid value. `--help` and unknown flags end the process, as argparse does.
    """
    return parsed(Settings, arguments, module="service")


def flags(kind: type[BaseSettings] = Settings) -> list[str]:
    """Every flag of the command line, for a shell that completes them."""
    return Parser(kind.model_fields, {}, about="", module="").flags


def parsed(kind: type[Kind], arguments: list[str], *, module: str) -> Kind:
    """Do the same as `load`, for the settings of the program that `python -m MODULE` starts."""
    for argument, following in pairwise([*arguments, "--"]):
        # An empty variable counts as unset; an empty flag is a mistake, such as "$TOKENS" without a value.
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and (value if equals else following) == "":
            raise SettingsError(f"{_flag(flag[2:].replace('-', '_'))} is empty; expected a value")
    headings: dict[str, str] = getattr(kind, "headings", {})
    parser = Parser(kind.model_fields, headings, about=kind.__doc__ or "", module=module)
    source: CliSettingsSource[Any] = CliSettingsSource(kind, root_parser=parser)
    try:
        return CliApp.run(kind, cli_args=arguments, cli_settings_source=source)
    except ValidationError as e:
        raise SettingsError("\n".join(explain(error) for error in e.errors())) from None


def explain(error: ErrorDetails) -> str:
    """Describe an invalid option: flag, variable, value and expectation."""
    if not error["loc"]:  # a combination of options
        return error["msg"].removeprefix("Value error, ")
    name = str(error["loc"][0])
    message = error["msg"].removeprefix("Value error, ").replace("match pattern", "a match of")
    expected = re.sub("^(Input|String) should (be |have )?", "expected ", message)
    return f"{_flag(name)} is {error['input']!r}; {expected}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')} (or DIGITS_{name.upper()})"
