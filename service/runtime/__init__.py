"""The process: composition, lifecycle, health, reload, device recovery, watchdog."""
