"""Stages and releases as registered versions."""
