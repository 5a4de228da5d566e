"""What makes a process of the parts: composition, lifecycle, reload, recovery, watchdog."""
