"""Send a hundred real digits through the published port, and see that Prometheus counted them.

python scripts/smoke.py [HOST:PORT [PROMETHEUS_URL]]

Without arguments it asks compose for the addresses, the certificate and the tokens, which .env may have changed. The
client's variables DIGITS_ADDRESS, DIGITS_TLS_CA and DIGITS_TOKEN_FILE have the last word.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # imports are not prepared for KeyboardInterrupt

from compose_stack import StackAddresses, read_stack  # noqa: E402
from digitserve_client import DigitsClient, DigitsError  # noqa: E402
from digitserve_client.image import read  # noqa: E402

from commandline import proxies  # noqa: E402
from digitserve.demo import read_labels  # noqa: E402

SAMPLES = ROOT / "samples"
RIGHT_AT_LEAST = 90  # of a hundred; the networks read more than 95
SEEN_WITHIN = 30  # seconds: some scrapes
COUNTED = 'sum(digits_predictions_total{job="digitserve"})'


class SmokeError(Exception):
    """What is wrong, in a sentence."""


def chosen_stack(arguments: list[str]) -> StackAddresses:
    """Return what the command line names, else the variables of the client, else what compose says."""
    if arguments:
        prometheus = arguments[1] if len(arguments) > 1 else StackAddresses.prometheus
        return StackAddresses(arguments[0], prometheus, _variable("DIGITS_TLS_CA"), _variable("DIGITS_TOKEN_FILE"))
    stack = read_stack(ROOT)
    return StackAddresses(
        os.environ.get("DIGITS_ADDRESS") or stack.grpc,
        stack.prometheus,
        _variable("DIGITS_TLS_CA") or stack.tls_ca,
        _variable("DIGITS_TOKEN_FILE") or stack.tokens_file,
    )


def _variable(name: str) -> Path | None:
    return Path(os.environ[name]) if os.environ.get(name) else None


def first_token(tokens: Path, directory: str) -> Path:
    """Write the first of the server's tokens to a file of its own, as the client takes it."""
    try:
        lines = [line.strip() for line in tokens.read_text().splitlines()]
    except OSError as e:
        raise SmokeError(f"{tokens}: {e.strerror}; expected the tokens of the service") from None
    token = Path(directory) / "token"
    token.touch(mode=0o600)
    token.write_text(next((line for line in lines if line and not line.startswith("#")), ""))
    return token


def send(stack: StackAddresses) -> tuple[int, int]:
    """Send each digit in a call of its own; how many there were, and how many were read right."""
    images = read(SAMPLES / "digits-100-images-idx3-ubyte")
    labels = read_labels(SAMPLES / "digits-100-labels-idx1-ubyte")
    with ExitStack() as opened:
        token = None
        if stack.tokens_file is not None:
            token = first_token(stack.tokens_file, opened.enter_context(tempfile.TemporaryDirectory()))
        client = opened.enter_context(DigitsClient(stack.grpc, tls_ca=stack.tls_ca, token_file=token))
        client.wait_until_serving(10)
        answers = [int(client.predict(image).digits[0]) for image in images]
    return len(answers), sum(answer == label for answer, label in zip(answers, labels, strict=True))


def query(prometheus: str, query: str) -> float:
    """The one value that a query of Prometheus has now; 0 where it has none."""
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 (the operator's own URL)
            result = json.load(reply)["data"]["result"]
    except (OSError, ValueError, KeyError) as e:
        raise SmokeError(f"{url}: no answer of Prometheus: {e}{proxies.describe(url)}") from None
    return float(result[0]["value"][1]) if result else 0.0


def wait_until_counted(prometheus: str, before: float, digits: int) -> float:
    """Seconds until Prometheus had counted the digits."""
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < SEEN_WITHIN:
        if query(prometheus, COUNTED) - before >= digits:
            return seconds
        time.sleep(0.5)
    raise SmokeError(
        f"Prometheus counted {query(prometheus, COUNTED) - before:.0f} of {digits} digits in {SEEN_WITHIN} s"
    )


def main() -> int:
    """Exit status: 0 all is well, 1 something is not, with a sentence."""
    stack = chosen_stack(sys.argv[1:])
    prometheus = stack.prometheus
    proxies.bypass()
    try:
        before = query(prometheus, COUNTED)
        digits, right = send(stack)
        print(f"{stack.grpc}: {right} of {digits} digits read right")
        print(f"{prometheus}: counted them within {wait_until_counted(prometheus, before, digits):.1f} s")
    except (DigitsError, SmokeError, ValueError) as e:
        print(f"smoke: {e}", file=sys.stderr)
        return 1
    if right < RIGHT_AT_LEAST:
        print(f"smoke: at least {RIGHT_AT_LEAST} digits read right are expected", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
