"""The diffusion process and its conditioning as plain formulas; knows no network."""
