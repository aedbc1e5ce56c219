"""Checks of a stage table that building its networks cannot make."""
