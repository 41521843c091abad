"""Files and arrays on disk."""
