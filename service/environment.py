"""Environment variables with the prefix of options that are no option, most often typing errors."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from service.config import PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

FOREIGN_VARIABLES = frozenset(
    PREFIX + name
    for name in (
        *("ADDRESS", "TLS_CA", "TOKEN_FILE"),  # the client and the playground
        *("RAY_ADDRESS", "MIN_REPLICAS", "MAX_REPLICAS", "TARGET_ONGOING", "SCALE_UP_AFTER", "SCALE_DOWN_AFTER"),
        *("REPLICA_CPUS", "MAX_ONGOING", "MAX_QUEUED"),  # Ray Serve
        "MNIST",  # the tests
    )
)
"""Variables of other programs of this project; one environment may have them all."""

MIN_SIMILARITY = 0.7
"""Of a name and its suggestion: PROT is similar to PORT, and ADDRESS to no option."""


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are no option, each with the most similar option, or ""."""
    options = [name.upper() for name in Settings.model_fields]
    names = [name.removeprefix(PREFIX) for name in environment if name.startswith(PREFIX)]
    unknown = [name for name in names if name not in options and PREFIX + name not in FOREIGN_VARIABLES]
    matches = {name: difflib.get_close_matches(name, options, 1, MIN_SIMILARITY) for name in unknown}
    return {PREFIX + name: PREFIX + similar[0] if similar else "" for name, similar in matches.items()}
