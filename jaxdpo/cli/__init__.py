"""Reads settings from YAML and arguments, and runs commands: one way for all of them."""
