"""Fuzzing: every reader of foreign bytes accepts or rejects its input by name. `make fuzz` runs it with atheris."""
