"""The steps of a run and the work of each."""
