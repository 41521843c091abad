"""A training run from its configuration to the exported model; begin with `fit`."""
