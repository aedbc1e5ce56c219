"""One loop over players, its engines, and what is kept of a run."""
