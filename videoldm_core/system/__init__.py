"""Files, journals and the machine."""
