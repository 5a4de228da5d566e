"""Send a hundred real digits through the published port, and see that Prometheus counted them.

python scripts/smoke.py [HOST:PORT [PROMETHEUS_URL]]
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # imports are not prepared for KeyboardInterrupt

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


def send(address: str) -> tuple[int, int]:
    """Send each digit in a call of its own; how many there were, and how many were read right."""
    images = read(SAMPLES / "digits-100-images-idx3-ubyte")
    labels = read_labels(SAMPLES / "digits-100-labels-idx1-ubyte")
    with DigitsClient(address) as client:
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
    address = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
    prometheus = sys.argv[2] if len(sys.argv) > 2 else "http://localhost:9090"
    proxies.bypass()
    try:
        before = query(prometheus, COUNTED)
        digits, right = send(address)
        print(f"{address}: {right} of {digits} digits read right")
        print(f"{prometheus}: counted them within {wait_until_counted(prometheus, before, digits):.1f} s")
    except (DigitsError, SmokeError) as e:
        print(f"smoke: {e}", file=sys.stderr)
        return 1
    if right < RIGHT_AT_LEAST:
        print(f"smoke: at least {RIGHT_AT_LEAST} digits read right are expected", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
