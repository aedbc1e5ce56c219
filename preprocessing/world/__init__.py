"""The demo's driving world: scenes composed by chance, drawn, and filmed as videos (film.py)."""
