"""`user.py` is read by type checkers, and never run."""

collect_ignore = ["user.py"]
