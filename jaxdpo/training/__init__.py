"""The optimizer step, the loop around it, checkpoints and metrics."""
