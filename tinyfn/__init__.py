"""A transformer as pure functions."""
