"""Asking OpenAI-compatible servers: one client for answers and for judges."""
