"""What the commands made with typer share: their options of every kind, and how they treat the standard streams."""
