"""Answers of a local model or of a server to files of prompts."""
