"""The cascade run forward."""
