"""LLM judges: one answer at a time, or two side by side."""
