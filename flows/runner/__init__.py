"""One command's work on a run: the Prefect flow, its display and its lock."""
