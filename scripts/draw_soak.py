"""Draw docs/images/soak.png from build/soak.json, which the soak of `make chaos` writes."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parent.parent
SEEN = ROOT / "build" / "soak.json"
OUT = ROOT / "docs" / "images" / "soak.png"
COLOURS = {"grpcio": "#3b6ea5", "native": "#c1693c"}


def main() -> None:
    """Draw memory over requests, with a line for each transport."""
    figure, axes = plt.subplots(figsize=(8, 3.6), dpi=110)
    for transport, seen in json.loads(SEEN.read_text()).items():
        requests = [one["requests"] / 1e3 for one in seen]
        label = f"{transport}, {seen[-1]['reloads']:.0f} reloads"
        axes.plot(requests, [one["megabytes"] for one in seen], color=COLOURS[transport], label=label)
    axes.set(xlabel="thousand requests answered", ylabel="resident memory, MB", ylim=(0, None), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(OUT)
    print(f"drew {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
