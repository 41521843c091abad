"""Whether a run fits a machine, and how fast it will be, before there is that machine."""
