"""Hugging Face in and out: family tables, strict loading, export; no torch."""
