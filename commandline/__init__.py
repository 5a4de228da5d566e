"""The common part of the typer commands: options, and the treatment of the standard streams."""
