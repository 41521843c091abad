"""Log-probabilities of completions under a model, and the cached reference."""
