"""Comparisons of a stage with its baselines on held-out clips."""
