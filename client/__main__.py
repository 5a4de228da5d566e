"""python -m client, in a clone: the same program as `digitserve`, for predict, demo, health and score."""

from __future__ import annotations

import sys

from digitserve.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
