"""Criteria: ready ones, functions of your own, and LLM judges."""
