"""Finds what is wrong with preference data before anything is trained on it."""
