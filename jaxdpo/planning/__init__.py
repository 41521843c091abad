"""Plans a run for a machine before there is that machine: memory, speed and a verdict."""
