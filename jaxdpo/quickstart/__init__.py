"""The model and pairs that ship with the package, and how they are made."""
