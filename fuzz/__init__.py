"""Fuzzing: whatever is read from others is read whole or refused by name. `make fuzz` runs it long, with atheris."""
