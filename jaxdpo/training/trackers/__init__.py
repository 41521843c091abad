"""Passes a run's metrics on to experiment trackers, each an extra of its own."""
