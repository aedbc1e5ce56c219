"""Clips encoded into published shards."""
