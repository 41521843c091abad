"""Sample, judge, and then pair, compare or train."""
