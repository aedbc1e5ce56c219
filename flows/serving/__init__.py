"""Serving a release: whose turn it is, and what is left behind."""
