"""Counts against a distribution."""

from scipy import stats


def assert_frequencies(counts, expected):
    """χ² over the tokens that may occur; no other may. A right sampler fails once in 10⁵."""
    assert not counts[expected == 0].any()
    possible = expected > 0
    if possible.sum() > 1:
        expected_counts = expected[possible] / expected[possible].sum() * counts.sum()
        assert stats.chisquare(counts[possible], expected_counts).pvalue > 1e-5
