"""The cascade with other numbers: one file per preset."""
