"""DPO beside supervised training on a language model that somebody else trained."""
