"""Write the reference pages from the code: options, commands, metrics and alerts.

    python scripts/reference.py [--check]

With --check it only names the pages that are out of date, and ends with status 1 if there are any.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from reference_commands import commands_page
from reference_metrics import alerts_page, metrics_page
from reference_options import options_page

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).parent.parent / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": options_page,
    "command-line.md": commands_page,
    "metrics.md": metrics_page,
    "alerts.md": alerts_page,
}


def main() -> int:
    """Write the pages, or compare them."""
    pages = {DOCS / name: make() for name, make in PAGES.items()}
    stale = {path: text for path, text in pages.items() if not path.exists() or path.read_text() != text}
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"docs/{path.name}: not up to date; expected the output of `make reference`", file=sys.stderr)
        return bool(stale)
    for path, text in stale.items():
        path.write_text(text)
        print(f"wrote docs/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
