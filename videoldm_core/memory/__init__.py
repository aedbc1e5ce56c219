"""Memory that training and evaluating a stage take, counted before anything runs."""
