"""Authentication: TLS, client certificates and bearer tokens, with real certificates over a real socket."""

from __future__ import annotations

import asyncio
import datetime as dt
import errno
import hashlib
import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from certificates import Authority, Pair, put
from conftest import ANSWERS_WITHIN, ROOT, launch, needs_native, on_both_transports, serving, until
from cryptography import x509
from digitserve_client import AsyncDigitsClient, DigitsClient, DigitsError
from prometheus_client import CollectorRegistry
from structlog.testing import CapturingLogger

from service.config import SettingsError, load
from service.errors import CredentialsError, Unauthenticated
from service.observability.logs import LOG_INTERVAL
from service.observability.metrics import Metrics
from service.security.tls import Tls
from service.security.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import ServiceProcess

FIRST, SECOND, STRANGE = "first-token-0123456789", "second-token-0123456789", "strange-token-0123456789"
BLANK = np.zeros((1, 784), np.uint8)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


def secured(model: Path, pair: Pair, *arguments: str | Path) -> Any:
    return serving(model, "--tls-cert", pair.certificate, "--tls-key", pair.key, *arguments)


def answers(service: ServiceProcess, timeout: float = ANSWERS_WITHIN, **files: Any) -> bool:
    with DigitsClient(service.address, timeout=timeout, **files) as client:
        return len(client.predict(BLANK).digits) == 1


def refused(service: ServiceProcess, timeout: float = 0.5, **files: Any) -> grpc.StatusCode:
    with DigitsClient(service.address, timeout=timeout, **files) as client, pytest.raises(DigitsError) as caught:
        client.predict(BLANK)
    return caught.value.code


UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@on_both_transports
def test_tls_accepts_clients_that_trust_its_ca_and_rejects_plain_text(
    model_path: Path, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "strange", "stranger")
    with secured(model_path, pair) as service:
        assert answers(service, tls_ca=authority.certificate)
        assert refused(service, tls_ca=stranger.certificate) in UNREACHABLE
        assert refused(service) in UNREACHABLE
        expiry = service.series()["digits_tls_expiry_timestamp_seconds", ()]
        assert expiry == pytest.approx(time.time() + 5 * 86400, abs=60)
        with DigitsClient(service.address, tls_ca=authority.certificate) as client:
            assert client.is_serving()


@on_both_transports
async def test_the_async_client_speaks_tls_with_a_token(
    model_path: Path, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    put(tmp_path / "token", FIRST.encode())
    with secured(model_path, pair, "--tokens-file", tmp_path / "token") as service:
        files = {"tls_ca": authority.certificate, "token_file": tmp_path / "token"}
        async with AsyncDigitsClient(service.address, **files) as client:
            assert len((await client.predict(BLANK)).digits) == 1


@on_both_transports
async def test_every_call_of_the_clients_sends_the_token(
    model_path: Path, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    put(tmp_path / "token", FIRST.encode())
    with secured(model_path, pair, "--tokens-file", tmp_path / "token") as service:
        files = {"tls_ca": authority.certificate, "token_file": tmp_path / "token"}
        async with AsyncDigitsClient(service.address, **files) as client:
            assert (await client.explain(BLANK)).explanations
            assert (await client.network()).weights
        with DigitsClient(service.address, **files) as client:
            assert client.explain(BLANK).explanations
            assert client.network().weights
            assert len(list(client.predict_stream([BLANK]))) == 1
            assert client.is_serving()


@pytest.mark.slow
@on_both_transports
def test_a_client_ca_only_admits_clients_with_its_certificates(
    model_path: Path, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    callers, stranger = Authority(tmp_path / "callers", "callers"), Authority(tmp_path / "strange", "stranger")
    with secured(model_path, pair, "--tls-client-ca", callers.certificate) as service:

        def shows(shown: Pair) -> dict[str, Any]:
            return {"tls_ca": authority.certificate, "tls_cert": shown.certificate, "tls_key": shown.key}

        assert answers(service, **shows(callers.issue("good")))
        for wrong in (callers.issue("late", days=-1), stranger.issue("good"), authority.issue("other")):
            assert refused(service, **shows(wrong)) in UNREACHABLE
        assert refused(service, tls_ca=authority.certificate) in UNREACHABLE

        # The CA of the clients rotates: old certificates are rejected, the other CA's are accepted.
        put(callers.certificate, stranger.certificate.read_bytes())
        assert service.wait_for("credentials loaded", kind="tls")["client_ca"] == ["commonName=stranger"]
        assert answers(service, **shows(stranger.issue("good")))
        assert refused(service, **shows(callers.issue("good"))) in UNREACHABLE


@needs_native
def test_a_failed_handshake_is_logged_with_its_reason_and_a_port_check_is_not(
    model_path: Path, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    wrong = Authority(tmp_path / "wrong", "wrong").certificate
    with secured(model_path, pair, "--transport", "native", "--tls-client-ca", wrong) as service:
        assert [line["client_ca"] for line in service.lines if line["event"] == "certificate loaded"] == [
            ["commonName=wrong"]
        ]
        host, port = service.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), 5):
            pass
        mine = authority.issue("mine")
        context = ssl.create_default_context(cafile=authority.certificate)
        context.load_cert_chain(mine.certificate, mine.key)
        with (
            socket.create_connection((host, int(port)), 5) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
            context.wrap_socket(plain, server_hostname="localhost") as encrypted,
        ):
            encrypted.recv(1)  # in TLS 1.3, the rejection follows the client's end of the handshake
        said = service.wait_for("handshake failed")
        assert said["reason"] == "invalid peer certificate: UnknownIssuer"
        assert said["peer"].startswith("127.0.0.1:")
        assert service.series()["digits_connections_rejected_total", ("handshake",)] == 1


def presented(service: ServiceProcess) -> bytes:
    """Return the certificate that a new connection receives."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, port = service.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as encrypted:
        return ssl.DER_cert_to_PEM_cert(encrypted.getpeercert(binary_form=True) or b"").encode()


@on_both_transports
def test_a_rotated_certificate_is_loaded_without_a_restart_and_a_bad_one_is_rejected(
    model_path: Path, authority: Authority, pair: Pair
) -> None:
    with secured(model_path, pair) as service:
        first = pair.certificate.read_bytes()
        assert presented(service) == first
        second = authority.issue("server").certificate.read_bytes()  # with the same file names, so in their place
        service.wait_for("credentials loaded", kind="tls")
        assert presented(service) == second != first
        good_key = pair.key.read_bytes()
        for content, sentence in [
            (authority.issue("late", days=-1).certificate.read_bytes(), "the key is not that of the certificate"),
            (second[:300], "holds no certificate in PEM"),
        ]:
            put(pair.certificate, content)
            assert sentence in service.wait_for("credentials rejected", kind="tls")["reason"]
            assert presented(service) == second
        assert pair.key.read_bytes() == good_key
        pair.certificate.unlink()
        assert "no such file" in service.wait_for("credentials rejected", kind="tls")["reason"]
        assert presented(service) == second
        assert answers(service, tls_ca=authority.certificate)
        series = service.series()
        assert series["digits_credentials_rotations_total", ("tls", "loaded")] >= 1
        assert series["digits_credentials_rotations_total", ("tls", "rejected")] == 3


@on_both_transports
def test_a_rotated_certificate_is_loaded_before_a_client_connects(
    model_path: Path, authority: Authority, pair: Pair
) -> None:
    with secured(model_path, pair) as service:
        before = service.series()["digits_tls_expiry_timestamp_seconds", ()]
        authority.issue("server", days=8)
        assert service.wait_for("credentials loaded", kind="tls")["subject"] == "commonName=server"
        after = service.series()["digits_tls_expiry_timestamp_seconds", ()]
        assert after - before == pytest.approx(3 * 86400, abs=60)


def test_a_certificate_whose_key_follows_later_is_not_rejected(authority: Authority, pair: Pair) -> None:
    metrics, log = silent()
    tls = Tls(pair.certificate, pair.key, None, metrics, log)
    other = authority.issue("other")
    put(pair.certificate, other.certificate.read_bytes())
    tls.poll()
    put(pair.key, other.key.read_bytes())
    tls.poll()
    tls.poll()
    assert [call.method_name for call in log.calls] == ["info", "info"]
    assert log.calls[-1].args == ("credentials loaded",)
    assert log.calls[-1].kwargs["subject"] == "commonName=other"


@pytest.mark.slow
@on_both_transports
def test_a_certificate_that_becomes_valid_is_loaded_without_another_change(
    model_path: Path, authority: Authority, pair: Pair
) -> None:
    with secured(model_path, pair) as service:
        authority.issue("server", begins=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=5))
        assert "not yet valid" in service.wait_for("credentials rejected", kind="tls")["reason"]
        service.wait_for("credentials loaded", kind="tls")
        assert presented(service) == pair.certificate.read_bytes()
        assert service.series()["digits_credentials_rotations_total", ("tls", "rejected")] == 1
        assert [line["event"] for line in service.lines].count("credentials rejected") == 1


def test_a_credential_file_that_becomes_readable_is_loaded_without_another_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The tests may run as root, who can read any file, so the test denies reading."""
    monkeypatch.setattr("service.security.file_watcher._RETRY_INTERVAL", 0.0)
    metrics, log = silent()
    path, denied = tmp_path / "tokens", [False]
    put(path, FIRST.encode())
    tokens = Tokens(path, metrics, log)
    put(path, SECOND.encode())
    read = Path.read_bytes

    def deny(self: Path) -> bytes:
        if denied[0]:
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", deny)
    for denied[0] in (True, True, True, False):
        tokens.poll()
        tokens.poll()
    assert tokens.digests == (hashlib.sha256(SECOND.encode()).digest(),)
    assert [call.args[0] for call in log.calls] == ["credentials rejected", "credentials loaded"]


@pytest.mark.parametrize(("mode", "warnings"), [(0o600, 0), (0o640, 0), (0o644, 1), (0o604, 1)])
def test_a_secret_that_every_user_may_read_is_warned_of(
    authority: Authority, pair: Pair, tmp_path: Path, mode: int, warnings: int
) -> None:
    tokens = tmp_path / "tokens"
    put(tokens, FIRST.encode())
    for secret, load_secret in (
        (pair.key, lambda *seen: Tls(pair.certificate, pair.key, authority.certificate, *seen)),
        (tokens, lambda *seen: Tokens(tokens, *seen)),
    ):
        secret.chmod(mode)
        metrics, log = silent()
        load_secret(metrics, log)
        exposed = [call.kwargs for call in log.calls if call.method_name == "warning"]
        assert len(exposed) == warnings
        assert all(str(secret) in fields["file"] for fields in exposed)


def test_an_unusable_pair_leaves_the_current_one_in_use(authority: Authority, pair: Pair) -> None:
    metrics, log = silent()
    tls = Tls(pair.certificate, pair.key, None, metrics, log)
    before = metrics.tls_expiry._value.get()

    def use(pem: Any) -> None:
        if pem.key != first:
            raise ValueError("no such curve")

    first = pair.key.read_bytes()
    tls.subscribe(use)
    authority.issue("server", days=8)
    tls.poll()
    tls.poll()
    assert log.calls[-1].kwargs["reason"].endswith("cannot be used: no such curve")
    assert metrics.tls_expiry._value.get() == before


def test_an_internal_failure_is_retried_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, pair: Pair
) -> None:
    monkeypatch.setattr("service.security.file_watcher._RETRY_INTERVAL", 0.0)
    metrics, log = silent()
    tls = Tls(pair.certificate, pair.key, None, metrics, log)
    tries = []

    def use(pem: Any) -> None:
        tries.append(pem)
        if len(tries) in {2, 3}:
            raise RuntimeError("no thread")

    tls.subscribe(use)
    authority.issue("server", days=8)
    for _ in range(5):
        tls.poll()
    assert [call.args[0] for call in log.calls[1:]] == ["credentials rejected", "credentials loaded"]
    assert log.calls[1].kwargs["reason"] == "RuntimeError: no thread"
    assert len(tries) == 4


def test_a_byte_order_mark_is_no_part_of_the_first_token(tmp_path: Path) -> None:
    put(tmp_path / "tokens", b"\xef\xbb\xbf" + FIRST.encode())
    assert Tokens(tmp_path / "tokens", *silent()).digests == (hashlib.sha256(FIRST.encode()).digest(),)


@on_both_transports
def test_a_certificate_for_a_workload_is_accepted(model_path: Path, authority: Authority) -> None:
    """Clients of SPIFFE compare other names than hosts."""
    names = (x509.UniformResourceIdentifier("spiffe://example.org/digits"),)
    workload = authority.issue("workload", names=names)
    with secured(model_path, workload) as service:
        assert presented(service) == workload.certificate.read_bytes()


@on_both_transports
def test_a_pipe_in_the_place_of_the_token_file_is_rejected(model_path: Path, tmp_path: Path) -> None:
    tokens, mine = tmp_path / "tokens", tmp_path / "mine"
    put(tokens, FIRST.encode())
    put(mine, FIRST.encode())
    with serving(model_path, "--tokens-file", tokens) as service:
        tokens.unlink()
        os.mkfifo(tokens)
        assert service.wait_for("credentials rejected", kind="tokens")["reason"].endswith("is no regular file")
        assert answers(service, token_file=mine)


def fails_to_start(*arguments: str | Path) -> str:
    service = launch("--port", "0", "--metrics-port", "0", *arguments)
    try:
        assert service.ended() == 1
        return str(service.lines[-1]["reason"])
    finally:
        service.close()


@on_both_transports
def test_an_unusable_pair_is_rejected_at_the_start(model_path: Path, authority: Authority) -> None:
    good, other, late = authority.issue("good"), authority.issue("other"), authority.issue("late", days=-1)
    reason = fails_to_start("--model", model_path, "--tls-cert", good.certificate, "--tls-key", other.key)
    assert reason == f"--tls-cert {good.certificate} and --tls-key {other.key}: the key is not that of the certificate"
    reason = fails_to_start("--model", model_path, "--tls-cert", late.certificate, "--tls-key", late.key)
    assert reason == f"--tls-cert {late.certificate}: certificate has expired"


def silent() -> tuple[Metrics, Any]:
    return Metrics(CollectorRegistry()), CapturingLogger()


def test_each_unusable_file_is_named(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    gone, nonsense = tmp_path / "gone", tmp_path / "nonsense"
    nonsense.write_text("nothing")
    for certificate, key, ca, sentence in [
        (gone, pair.key, None, f"--tls-cert {gone}: no such file"),
        (pair.certificate, gone, None, f"--tls-key {gone}: no such file"),
        (pair.certificate, pair.key, gone, f"--tls-client-ca {gone}: no such file"),
        (tmp_path, pair.key, None, f"--tls-cert {tmp_path}: cannot be read: Is a directory"),
        (pair.certificate, pair.key, nonsense, f"--tls-client-ca {nonsense}: holds no certificate in PEM"),
        (nonsense, pair.key, None, f"--tls-cert {nonsense}: holds no certificate in PEM"),
        (pair.certificate, nonsense, None, f"--tls-key {nonsense}: holds no private key in PEM"),
    ]:
        with pytest.raises(CredentialsError) as caught:
            Tls(certificate, key, ca, *silent())
        assert str(caught.value).startswith(sentence)
    Tls(pair.certificate, pair.key, authority.certificate, *silent())


@on_both_transports
def test_a_call_needs_one_of_the_tokens_and_health_may_go_without(model_path: Path, tmp_path: Path) -> None:
    tokens, mine = tmp_path / "tokens", tmp_path / "mine"
    tokens.write_text(f"# two teams\n{FIRST}\n\nsha256:{hashlib.sha256(SECOND.encode()).hexdigest()}\n")
    with serving(model_path, "--tokens-file", tokens) as service:
        for token in (FIRST, SECOND):
            put(mine, f"{token}\n".encode())
            assert answers(service, token_file=mine)
        put(mine, STRANGE.encode())
        assert refused(service, ANSWERS_WITHIN, token_file=mine) is grpc.StatusCode.UNAUTHENTICATED
        assert refused(service, ANSWERS_WITHIN) is grpc.StatusCode.UNAUTHENTICATED
        with DigitsClient(service.address) as client:
            assert client.is_serving()
            with pytest.raises(DigitsError, match="UNAUTHENTICATED: authorization: missing"):
                list(client.predict_stream([BLANK]))
        assert service.series()["digits_requests_dropped_total", ("unauthenticated",)] == 3
        assert service.stop() == 0
        logged = str(service.lines)
        assert not any(token in logged for token in (FIRST, SECOND, STRANGE))


@on_both_transports
def test_unauthenticated_calls_do_not_flood_the_log(model_path: Path, tmp_path: Path) -> None:
    tokens, mine = tmp_path / "tokens", tmp_path / "mine"
    tokens.write_text(FIRST)
    mine.write_text(FIRST)
    with serving(model_path, "--tokens-file", tokens) as service:
        began = time.monotonic()
        with DigitsClient(service.address) as stranger, DigitsClient(service.address, token_file=mine) as known:
            for _ in range(50):
                for client, sentence in ((stranger, "UNAUTHENTICATED"), (known, "NOT_FOUND")):
                    with pytest.raises(DigitsError, match=sentence):
                        client.predict(BLANK, model_version="9")
            time.sleep(LOG_INTERVAL)
            with pytest.raises(DigitsError, match="UNAUTHENTICATED"):
                stranger.predict(BLANK)
            with pytest.raises(DigitsError, match="NOT_FOUND"):
                known.predict(BLANK, model_version="9")
        assert service.series()["digits_requests_dropped_total", ("unauthenticated",)] == 51
        intervals = (time.monotonic() - began) / LOG_INTERVAL
        assert service.stop() == 0
        refused = [line for line in service.lines if line["event"] == "call rejected"]
        assert sum(1 + line["suppressed"] for line in refused if line["code"] == "NotFound") == 51
        others = [line["suppressed"] for line in refused if line["code"] == "Unauthenticated"]
        assert len(others) + sum(others) == 51
        assert len(others) <= intervals + 2


@on_both_transports
def test_health_can_be_closed_too(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(FIRST)
    with (
        serving(model_path, "--tokens-file", tmp_path / "tokens", "--no-health-without-token") as closed,
        grpc.insecure_channel(closed.address) as channel,
    ):
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError) as caught:
            check(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert check(b"", timeout=5, metadata=(("authorization", f"Bearer {FIRST}"),))


@on_both_transports
def test_tokens_rotate_without_a_restart_on_both_sides(model_path: Path, tmp_path: Path) -> None:
    tokens, mine = tmp_path / "tokens", tmp_path / "mine"
    put(tokens, FIRST.encode())
    put(mine, FIRST.encode())
    with (
        serving(model_path, "--tokens-file", tokens) as service,
        DigitsClient(service.address, token_file=mine) as client,
    ):
        assert len(client.predict(BLANK).digits) == 1
        put(tokens, SECOND.encode())
        service.wait_for("credentials loaded", kind="tokens")
        with pytest.raises(DigitsError, match="UNAUTHENTICATED"):
            client.predict(BLANK)
        put(mine, SECOND.encode())
        assert len(client.predict(BLANK).digits) == 1
        put(tokens, b"")
        assert "holds no token" in service.wait_for("credentials rejected", kind="tokens")["reason"]
        assert len(client.predict(BLANK).digits) == 1


def loaded(service: ServiceProcess) -> tuple[float, float]:
    """Return how often tokens and certificates were loaded."""
    series = service.series()
    return tuple(series["digits_credentials_rotations_total", (what, "loaded")] for what in ("tokens", "tls"))  # type: ignore[return-value]


@pytest.mark.slow
@on_both_transports
async def test_rotations_under_load_lose_no_call(
    model_path: Path, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    tokens, mine = tmp_path / "tokens", tmp_path / "mine"
    put(tokens, FIRST.encode())
    put(mine, FIRST.encode())
    files = {"tls_ca": authority.certificate, "token_file": mine}
    done, answered = asyncio.Event(), [0, 0]

    async def ask(service: ServiceProcess) -> None:
        async with AsyncDigitsClient(service.address, **files) as client:
            while not done.is_set():
                await client.predict(BLANK)
                answered[0] += 1

    async def connect(service: ServiceProcess) -> None:
        while not done.is_set():
            async with AsyncDigitsClient(service.address, **files) as client:
                await client.predict(BLANK)
                answered[1] += 1

    with secured(model_path, pair, "--tokens-file", tokens) as service:
        tasks = [asyncio.create_task(ask(service)), asyncio.create_task(connect(service))]
        for rotation in range(4):
            put(tokens, f"{FIRST}\nanother-token-of-rotation-{rotation}\n".encode())
            await asyncio.to_thread(authority.issue, "server")
            await until(lambda so_often=rotation + 1: loaded(service) == (so_often, so_often))
        await until(lambda: min(answered) > 20 or any(task.done() for task in tasks))
        done.set()
        await asyncio.gather(*tasks)
        assert service.series()["digits_credentials_rotations_total", ("tls", "rejected")] == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no token; expected one a line"),
        (b"# none\n", "holds no token; expected one a line"),
        (b"short", "line 1 is no token; expected at least 16 printable characters without a space"),
        (b"\nsha256:0123\n", "line 2 is no token"),
        (b"with a space in the middle", "line 1 is no token"),
        (b"\xff\xfe", "is not text"),
    ],
)
def test_an_invalid_token_file_is_rejected_by_line(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(content)
    with pytest.raises(CredentialsError) as caught:
        Tokens(path, *silent())
    assert str(caught.value).startswith(f"--tokens-file {path}: {sentence}")


def test_only_the_whole_token_under_its_scheme_counts(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(FIRST)
    tokens = Tokens(path, *silent())
    tokens.check([("authorization", f"Bearer {FIRST}")])
    tokens.check([("authorization", f"bearer {FIRST}")])
    for wrong in (FIRST, f"Basic {FIRST}", f"Bearer {FIRST[:-1]}", f"Bearer {FIRST} ", "Bearer", "", "Bearer "):
        with pytest.raises(Unauthenticated):
            tokens.check([("authorization", wrong)])


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("DIGITS_")]:
        monkeypatch.delenv(name)
    return


@pytest.mark.usefixtures("unset")
def test_options_that_need_each_other_are_required_together() -> None:
    for given, missing in (("tls-cert", "tls-key"), ("tls-key", "tls-cert"), ("tls-client-ca", "tls-cert")):
        with pytest.raises(SettingsError, match=rf"^--{given} \(or DIGITS_\w+\) without --{missing} "):
            load([f"--{given}", "x.pem"])


def test_a_token_does_not_leave_the_machine_in_plain_text(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(FIRST)
    with pytest.raises(ValueError, match=r"token_file: far\.example:1 without TLS"):
        DigitsClient("far.example:1", token_file=tmp_path / "token")


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "digitserve", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@on_both_transports
def test_the_command_line_takes_the_same_files(
    model_path: Path, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    put(tmp_path / "token", FIRST.encode())
    with secured(model_path, pair, "--tokens-file", tmp_path / "token") as service:
        files = ("--tls-ca", authority.certificate, "--token-file", tmp_path / "token")
        samples = ROOT / "samples" / "digits-100-images-idx3-ubyte"
        done = command("predict", samples, "--limit", "1", "--json", "--address", service.address, *files)
        assert (done.returncode, '"digit"' in done.stdout) == (0, True), done.stderr
        assert command("health", "--address", service.address, *files).returncode == 0
        done = command("health", "--address", service.address, "--tls-ca", tmp_path / "gone")
        assert done.returncode == 2
        assert "tls_ca" in done.stderr
