"""Preference pairs from what people did."""
