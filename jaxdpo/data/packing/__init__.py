"""Planned pairs as packed, prefix-shared rows: the plan, the batch and its layout."""
