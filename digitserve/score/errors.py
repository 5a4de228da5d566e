"""Errors that end a run of scoring; unreadable rows do not, and are reported in the output."""

from __future__ import annotations


class ScoreError(Exception):
    """The run cannot start or continue; the text has the file, folder or flag, and the expectation."""
