"""The tests of the API and of the transports' parity, repeated with models on a GPU by WebGPU.

The GPU is a software GPU (tests/software_gpu.py), with its own kernels and device memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import software_gpu
import test_golden
import test_grpc_api
import test_inference
import test_transport_parity
from conftest import ServiceProcess, needs_native, serving
from software_gpu import webgpu

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["webgpu"]

pytestmark = [*software_gpu.marks, pytest.mark.usefixtures("webgpu")]

OPTIONS = ("--provider", "webgpu", "--max-batch-size", "1024")


@pytest.fixture(scope="module")
def server(model_path: Path, transport: str, webgpu: None) -> Iterator[ServiceProcess]:  # noqa: ARG001 (set the environment)
    with serving(model_path, *OPTIONS) as service:
        yield service


@pytest.fixture(scope="module")
def addresses(model_path: Path, webgpu: None) -> Iterator[tuple[str, str]]:  # noqa: ARG001 (sets the environment)
    with (
        serving(model_path, *OPTIONS, "--transport", "grpcio") as first,
        serving(model_path, *OPTIONS, "--transport", "native") as second,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(test_transport_parity, "MESSAGES", 200)  # a run in software takes as long as 100 on the CPU
        yield first.address, second.address


# Fixtures and tests of other modules. The fixtures above have the names that they use.
channel = test_grpc_api.channel
stub = test_inference.stub
channels = test_transport_parity.channels

test_digits = test_grpc_api.test_a_hundred_real_digits_are_answered_as_the_reference_does
test_valid_requests_are_accepted = test_grpc_api.test_valid_requests_are_accepted
test_invalid_requests_are_rejected = test_grpc_api.test_invalid_requests_are_rejected
test_stream = test_grpc_api.test_a_stream_answers_every_message_in_order
test_malformed_stream = test_grpc_api.test_a_stream_ends_at_its_first_malformed_message_with_the_replies_before_it
test_open_inference = test_inference.test_raw_bytes_in_give_raw_bytes_out_as_the_reference_has_them
test_typed_contents = test_inference.test_typed_contents_in_give_typed_contents_out
test_parity = needs_native(test_transport_parity.test_any_message_is_answered_alike)
test_parity_of_streams = needs_native(test_transport_parity.test_any_stream_is_answered_alike)

CALLS = [call for call in test_golden.CALLS if not call["method"].endswith(("ModelMetadata", "ModelConfig"))]
"""The tests, without the two that name the provider."""


@pytest.mark.parametrize("call", CALLS, ids=[f"{i}-{test_golden.name(call)}" for i, call in enumerate(CALLS)])
def test_a_recorded_call_of_tritonclient_gets_the_recorded_answer(server: ServiceProcess, call: dict[str, Any]) -> None:
    test_golden.test_a_recorded_call_gets_the_recorded_answer(server, call)
