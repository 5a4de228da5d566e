"""What ends a run of scoring; a row that cannot be read does not, it is reported beside the output."""

from __future__ import annotations


class ScoreError(Exception):
    """The run cannot start or go on; the text names file, folder or flag and says what was expected."""
