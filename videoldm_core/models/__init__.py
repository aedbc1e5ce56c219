"""Networks: an untouched image model and the temporal layers between its own."""
