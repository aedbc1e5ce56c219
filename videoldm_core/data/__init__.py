"""How frames look on disk and who reads what, when."""
