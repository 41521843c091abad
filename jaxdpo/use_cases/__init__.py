"""Worked use cases: data generator and criterion each, and their proof."""
