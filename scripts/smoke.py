"""Send 100 real digits through each published port, and check that Prometheus counts them.

python scripts/smoke.py [HOST:PORT [PROMETHEUS_URL]]

Without arguments it reads addresses, certificate and tokens from compose, which reads .env, and sends the digits over
HTTP too. The client's variables DIGITS_ADDRESS, DIGITS_TLS_CA and DIGITS_TOKEN_FILE override them.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # imports are not prepared for KeyboardInterrupt

from compose_stack import StackAddresses, read_stack  # noqa: E402
from digitserve_client import DigitsClient, DigitsError  # noqa: E402
from digitserve_client.image import read  # noqa: E402

from commandline import proxies  # noqa: E402
from digitserve.demo import read_labels  # noqa: E402

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SAMPLES = ROOT / "samples"
RIGHT_AT_LEAST = 90  # of 100; the networks read more than 95
SEEN_WITHIN = 30  # seconds: several scrapes
COUNTED = 'sum(digits_predictions_total{job="digitserve"})'


class SmokeError(Exception):
    """The check failed; the text is the problem."""


def chosen_stack(arguments: list[str]) -> StackAddresses:
    """Return the addresses of the command line, of the client's variables, or of compose, in this order."""
    if arguments:
        prometheus = arguments[1] if len(arguments) > 1 else StackAddresses.prometheus
        return StackAddresses(
            arguments[0], None, prometheus, _variable("DIGITS_TLS_CA"), _variable("DIGITS_TOKEN_FILE")
        )
    stack = read_stack(ROOT)
    return StackAddresses(
        os.environ.get("DIGITS_ADDRESS") or stack.grpc,
        stack.http,
        stack.prometheus,
        _variable("DIGITS_TLS_CA") or stack.tls_ca,
        _variable("DIGITS_TOKEN_FILE") or stack.tokens_file,
    )


def _variable(name: str) -> Path | None:
    return Path(os.environ[name]) if os.environ.get(name) else None


def first_token(tokens: Path) -> str:
    """Return the first of the server's tokens."""
    try:
        lines = [line.strip() for line in tokens.read_text().splitlines()]
    except OSError as e:
        raise SmokeError(f"{tokens}: {e.strerror}; expected the tokens of the service") from None
    return next((line for line in lines if line and not line.startswith("#")), "")


def send_grpc(stack: StackAddresses, images: npt.NDArray[np.uint8], token: str | None) -> list[int]:
    """Send each digit in a separate call."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "token"  # the client reads it from a file
        if token is not None:
            file.touch(mode=0o600)
            file.write_text(token)
        with DigitsClient(stack.grpc, tls_ca=stack.tls_ca, token_file=None if token is None else file) as client:
            client.wait_until_serving(10)
            return [int(client.predict(image).digits[0]) for image in images]


def send_http(stack: StackAddresses, images: npt.NDArray[np.uint8], token: str | None) -> list[int]:
    """Send all digits in one request, as rows of JSON."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    url = f"{stack.http}/v1/predict"
    rows = json.dumps(images.reshape(len(images), -1).tolist()).encode()
    trusted = ssl.create_default_context(cafile=stack.tls_ca) if stack.tls_ca else None
    try:
        request = urllib.request.Request(url, rows, headers)  # noqa: S310 (the operator's own URL)
        with urllib.request.urlopen(request, timeout=10, context=trusted) as reply:  # noqa: S310 (as above)
            return list(json.load(reply)["digits"])
    except (OSError, ValueError, KeyError) as e:
        raise SmokeError(f"{url}: no answer: {e}{proxies.describe(url)}") from None


def check(address: str, digits: list[int], labels: npt.NDArray[np.uint8]) -> None:
    """Print the number of correct digits; raise SmokeError if there are too few."""
    right = sum(digit == label for digit, label in zip(digits, labels, strict=True))
    print(f"{address}: {right} of {len(digits)} digits read right")
    if right < RIGHT_AT_LEAST:
        raise SmokeError(f"{address}: {right} of {len(digits)} digits read right; expected {RIGHT_AT_LEAST} or more")


def query(prometheus: str, query: str) -> float:
    """Return the current value of a query of Prometheus, or 0 without one."""
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 (the operator's own URL)
            result = json.load(reply)["data"]["result"]
    except (OSError, ValueError, KeyError) as e:
        raise SmokeError(f"{url}: no answer of Prometheus: {e}{proxies.describe(url)}") from None
    return float(result[0]["value"][1]) if result else 0.0


def wait_until_counted(prometheus: str, before: float, digits: int) -> float:
    """Return the seconds until Prometheus has counted the digits."""
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < SEEN_WITHIN:
        if query(prometheus, COUNTED) - before >= digits:
            return seconds
        time.sleep(0.5)
    raise SmokeError(
        f"Prometheus counted {query(prometheus, COUNTED) - before:.0f} of {digits} digits in {SEEN_WITHIN} s"
    )


def main() -> int:
    """Run the check; return 0, or 1 after a message if it fails."""
    stack = chosen_stack(sys.argv[1:])
    proxies.bypass()
    images = read(SAMPLES / "digits-100-images-idx3-ubyte")
    labels = read_labels(SAMPLES / "digits-100-labels-idx1-ubyte")
    try:
        before = query(stack.prometheus, COUNTED)
        token = first_token(stack.tokens_file) if stack.tokens_file else None
        answers = {stack.grpc: send_grpc(stack, images, token)}
        if stack.http:
            answers[stack.http] = send_http(stack, images, token)
        for address, digits in answers.items():
            check(address, digits, labels)
        seconds = wait_until_counted(stack.prometheus, before, len(answers) * len(images))
        print(f"{stack.prometheus}: counted them within {seconds:.1f} s")
    except (DigitsError, SmokeError, ValueError) as e:
        print(f"smoke: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
