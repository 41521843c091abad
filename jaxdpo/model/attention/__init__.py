"""Attention over packed, prefix-shared rows: one file for each back end."""
