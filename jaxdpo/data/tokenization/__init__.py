"""Conversations → token ids: chat templates, control tokens, truncation, the store of pairs."""
