"""Stage tables with their numbers: one file per preset."""
