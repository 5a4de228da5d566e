"""The answers of the playground's gateway, with real servers: calls, networks, pictures and errors."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from certificates import Authority
from conftest import ANSWERS_WITHIN, serving
from digitserve_client import DigitsClient
from digitserve_client.image import read_bytes
from digitserve_client.pb.digits.v1.digits_pb2 import PredictResponse
from google.protobuf import text_format
from http_requests import http_address
from PIL import Image, ImageDraw
from playground_page import SEVEN, get, page_of, post

from export import checkpoint
from playground.gateway import BURST, FILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import ServiceProcess


@pytest.fixture(scope="module")
def service(model_path: Path) -> Iterator[ServiceProcess]:
    """A server on the default transport; the gateway does not depend on the transport."""
    with serving(model_path, "--http-port", "0") as found:
        yield found


@pytest.fixture(scope="module")
def page(service: ServiceProcess) -> Iterator[str]:
    """Over gRPC."""
    with page_of(service.address) as found:
        yield found


@pytest.fixture(scope="module")
def over_http(service: ServiceProcess) -> Iterator[str]:
    with page_of(f"http://{http_address(service)}") as found:
        yield found


def address_of(service: ServiceProcess, transport: str, scheme: str = "http") -> str:
    return f"{scheme}://{http_address(service)}" if transport == "HTTP" else service.address


def png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def drawn_seven() -> bytes:
    picture = Image.new("RGBA", (280, 280), "black")
    ImageDraw.Draw(picture).line([(140 + x, 140 + y) for x, y in SEVEN], fill="white", width=22, joint="curve")
    return png(picture)


def test_a_call_has_the_answer_of_the_service_and_both_messages(
    page: str, service: ServiceProcess, digits: np.ndarray
) -> None:
    [call] = post(page, "predict", digits[70].tobytes())
    with DigitsClient(service.address) as client:
        found = client.predict(digits[70], include_hidden_layers=True)
    assert call["digit"] == found.digits[0] == 7
    assert found.layer1 is not None
    np.testing.assert_array_equal(np.float32(call["activations"]), found.activations[0])
    np.testing.assert_array_equal(np.float32(call["layer1"]), found.layer1[0])
    assert call["version"] == found.model_version
    reply = text_format.Parse(call["reply"], PredictResponse()) if " ... " not in call["reply"] else None
    assert reply is None or reply.digits == [7]
    assert call["reply"].startswith("digits: 7\nactivations: ")
    assert call["method"] == "digits.v1.DigitService/Predict"
    assert call["request"].startswith('pixels: "\\000\\000')
    assert call["request"].endswith("include_hidden_layers: true")
    assert call["request_bytes"] > 784
    assert call["milliseconds"] > 0


def test_over_http_the_page_has_the_same_data_and_the_messages_as_json(
    page: str, over_http: str, digits: np.ndarray
) -> None:
    [expected], [call] = (post(each, "predict", digits[70].tobytes()) for each in (page, over_http))
    for name in ("digit", "activations", "layer1", "layer2", "version"):
        assert call[name] == expected[name]
    assert len(call["request_id"]) == 32
    assert call["method"] == "POST /v1/predict"
    assert call["request"].startswith('{"pixels": [0, 0, 0, ')
    assert call["request"].endswith('"include_hidden_layers": true}')
    assert call["request_bytes"] > 784
    assert call["reply"].startswith('{"digits":[7],')
    assert call["reply_bytes"] > len(call["reply"]) - len(" ... ")
    assert get(over_http, "network/0") == get(page, "network/0")
    [described], [other] = get(over_http, "service"), get(page, "service")
    assert (described.pop("transport"), other.pop("transport")) == ("HTTP", "gRPC")
    for name in ("name", "version", "activation", "accuracy", "sha256", "platform", "provider"):
        assert described[name] == other[name]
    assert described["address"].startswith("http://127.0.0.1:")


def test_calls_at_once_over_http_are_counted_by_batches_too(over_http: str, digits: np.ndarray) -> None:
    found = post(over_http, "burst", digits[0].tobytes())
    assert sum(batch["images"] * batch["runs"] for batch in found["batches"]) == BURST


@pytest.mark.slow
def test_a_port_that_is_not_http_is_an_error_that_names_it(service: ServiceProcess, digits: np.ndarray) -> None:
    with page_of(f"http://{service.address}") as page:
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(page, "predict", digits[0].tobytes())
        error = json.load(refused.value)
        assert (refused.value.code, error["code"]) == (503, "UNAVAILABLE")
        assert error["error"].startswith(f"http://{service.address}: ")
        assert error["error"].endswith("; expected the HTTP port of a server")
        refused.value.close()


@pytest.mark.slow
def test_an_error_over_http_has_the_code_and_message_of_the_server(
    model_path: Path, tmp_path: Path, digits: np.ndarray
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-the-page")
    with (
        serving(model_path, "--http-port", "0", "--tokens-file", tokens) as service,
        page_of(address_of(service, "HTTP")) as page,
        pytest.raises(urllib.error.HTTPError) as refused,
    ):
        post(page, "predict", digits[0].tobytes())
    error = json.load(refused.value)
    assert (refused.value.code, error["code"]) == (502, "UNAUTHENTICATED")
    assert error["error"].startswith("authorization: ")
    refused.value.close()


def test_the_served_models_are_described(page: str, digits: np.ndarray) -> None:
    post(page, "predict", digits[0].tobytes())
    [found] = get(page, "service")
    trained = checkpoint.load(checkpoint.committed("sigmoid")).network
    assert found["sha256"] == trained.sha256()
    assert found["activation"] == "sigmoid"
    assert found["provider"] == "CPUExecutionProvider"
    assert found["batches"][0]["images"] == 1
    assert found["batches"][0]["runs"] >= 1
    assert get(page, "gateway") == {"services": 1}


def test_the_network_is_returned_to_the_last_bit(page: str) -> None:
    found = np.frombuffer(base64.b64decode(get(page, "network/0")["parameters"]), "<f4")
    trained = checkpoint.load(checkpoint.committed("sigmoid")).network
    expected = np.concatenate([array.reshape(-1) for array in trained.parameters().values()])
    # GetNetwork returns the first layer of the model file, divided by 255, times 255.
    np.testing.assert_allclose(found, expected, rtol=3e-7)
    assert found.shape == (13_002,)


def test_calls_at_once_are_counted_by_the_batches_that_they_became(page: str, digits: np.ndarray) -> None:
    found = post(page, "burst", digits[0].tobytes())
    assert found["calls"] == BURST
    assert sum(batch["images"] * batch["runs"] for batch in found["batches"]) == BURST


@pytest.mark.slow
def test_two_servers_answer_side_by_side(model_path: Path, make_model: Callable[..., Path], digits: np.ndarray) -> None:
    with (
        serving(model_path) as one,
        serving(make_model("relu")) as other,
        page_of(one.address, "--compare", other.address) as page,
    ):
        assert [service["activation"] for service in get(page, "service")] == ["sigmoid", "relu"]
        calls = post(page, "predict", digits[70].tobytes())
        assert [call["digit"] for call in calls] == [7, 7]
        assert calls[0]["activations"] != calls[1]["activations"]
        assert get(page, "network/0") != get(page, "network/1")


def test_a_photograph_becomes_the_clients_own_pixels(page: str) -> None:
    assert post(page, "pixels", drawn_seven(), "image/png")["pixels"] == read_bytes(drawn_seven())[0].tolist()


def test_a_picture_without_a_digit_is_not_an_error(page: str) -> None:
    found = post(page, "pixels", png(Image.new("L", (280, 280))), "image/png")
    assert found["nothing"].startswith("the picture shows no digit")


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("pixels", b"no picture", 422, "the picture is no picture"),
        ("predict", bytes(783), 400, "the body holds 783 bytes; expected 784 pixels"),
        ("burst", b"", 400, "the body holds 0 bytes; expected 784 pixels"),
        ("network/1", None, 404, "service 1: not there; expected 0 to 0"),
        ("other", b"", 404, "Not Found"),
    ],
)
def test_each_error_has_its_message(page: str, path: str, body: bytes | None, status: int, sentence: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(page, path) if body is None else post(page, path, body)
    assert refused.value.code == status
    assert sentence in json.load(refused.value)["error"]
    refused.value.close()


@pytest.mark.parametrize("path", ["", *FILES, "gateway", "service", "network/0", "nothing"])
def test_every_reply_forbids_content_of_other_origins(page: str, path: str) -> None:
    try:
        with urllib.request.urlopen(f"{page}/{path}", timeout=ANSWERS_WITHIN) as reply:
            headers, text = reply.headers, reply.read().decode()
    except urllib.error.HTTPError as error:
        headers, text = error.headers, ""
        error.close()
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert headers["x-content-type-options"] == "nosniff"
    assert "https://" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["gRPC", "HTTP"])
def test_a_server_with_tls_and_tokens_is_reachable_too(
    model_path: Path, tmp_path: Path, digits: np.ndarray, transport: str
) -> None:
    authority, token = Authority(tmp_path / "ours"), tmp_path / "token"
    pair = authority.issue("server")
    token.write_text("a-token-of-the-page")
    secured: tuple[Any, ...] = ("--tls-cert", pair.certificate, "--tls-key", pair.key, "--tokens-file", token)
    secured += ("--http-port", "0")
    shown = ("--tls-ca", authority.certificate, "--token-file", token)
    with serving(model_path, *secured) as service, page_of(address_of(service, transport, "https"), *shown) as page:
        assert post(page, "predict", digits[70].tobytes())[0]["digit"] == 7
        assert get(page, "service")[0]["provider"] == "CPUExecutionProvider"


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["gRPC", "HTTP"])
def test_a_stopped_server_is_an_error_with_its_code(model_path: Path, digits: np.ndarray, transport: str) -> None:
    options = ("--http-port", "0")
    with serving(model_path, *options) as service, page_of(address_of(service, transport)) as page:
        assert service.stop() == 0
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(page, "predict", digits[0].tobytes())
        assert refused.value.code == 503
        assert json.load(refused.value)["code"] == "UNAVAILABLE"
        refused.value.close()
