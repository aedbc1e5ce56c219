"""Functions run in child processes with limits, which are believed little."""
