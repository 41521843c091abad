"""Intervals and tests against SciPy and statsmodels, and what they promise in simulation."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as their_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from jaxdpo.evaluation.agreement import share
from jaxdpo.evaluation.statistics import (
    Paired,
    difference,
    fewer_failures,
    holm,
    mcnemar,
    mean_score,
    pair_up,
    score_difference,
    sign_test,
    win_rate,
)

TABLES = [Paired(20, 3, 11, 6), Paired(0, 0, 9, 1), Paired(30, 0, 0, 0), Paired(5, 7, 7, 5)]


@pytest.mark.parametrize(("passed", "prompts"), [(0, 7), (7, 7), (13, 40), (299, 300)])
def test_pass_rates_are_wilsons(passed, prompts):
    ours = share(passed, prompts)
    theirs = stats.binomtest(passed, prompts).proportion_ci(method="wilson")
    np.testing.assert_allclose(ours, [passed / prompts, theirs.low, theirs.high], atol=1e-12)
    np.testing.assert_allclose(
        ours[1:], proportion_confint(passed, prompts, method="wilson"), atol=1e-12
    )


@pytest.mark.parametrize("table", TABLES)
def test_mcnemar_is_statsmodels(table):
    cells = [[table.both, table.first_only], [table.second_only, table.neither]]
    theirs: Any = their_mcnemar(cells, exact=True)  # a bunch of dynamic attributes
    assert mcnemar(table) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_pairing_counts_prompts():
    first = [True, True, False, False, False]
    second = [True, False, True, True, False]
    assert pair_up(first, second) == Paired(both=1, first_only=1, second_only=2, neither=1)
    with pytest.raises(ValueError):
        pair_up(first, second[:-1])


def test_newcombes_published_examples():
    """From table III of Newcombe 1998, method 10: (a, b, c, d), the interval of (b − c) / n."""
    for (both, first_only, second_only, neither), low, high in [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((36, 14, 0, 0), 0.1528, 0.4167),
    ]:
        ours = difference(Paired(both, second_only, first_only, neither))
        assert ours.low == pytest.approx(low, abs=1e-4)
        assert ours.high == pytest.approx(high, abs=1e-4)


def test_fewer_failures_is_scipys_bootstrap():
    table = Paired(120, 10, 40, 30)
    failed = np.repeat([(0, 0), (0, 1), (1, 0), (1, 1)], table, axis=0)

    def decrease(before, after, axis):
        return 1 - after.sum(axis=axis) / before.sum(axis=axis)

    theirs = stats.bootstrap(
        tuple(failed.T),
        decrease,
        paired=True,
        method="percentile",
        n_resamples=9999,
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = fewer_failures(table)
    assert ours.value == pytest.approx(1 - 40 / 70)
    np.testing.assert_allclose(ours[1:], theirs, atol=0.02)
    assert fewer_failures(table) == ours
    assert math.isnan(fewer_failures(Paired(50, 0, 4, 0)).value)
    # Of 24 failures none is left: at most 1 in 7.25 of the answers, z² / (24 + z²), may fail yet.
    none_left = fewer_failures(Paired(0, 0, 24, 0))
    z2 = 1.959964**2
    assert none_left == pytest.approx((1.0, 24 / (24 + z2), 1.0), rel=1e-6)
    # Half of 48 failed: the same bound on 48, for each failure twice as much.
    half = fewer_failures(Paired(24, 0, 24, 0))
    assert half.low == pytest.approx(1 - 2 * z2 / (48 + z2), rel=1e-6)


def test_its_interval_holds_the_truth():
    """Intervals hold the truth in 95% of 300 evaluations, within three standard deviations."""
    rng = np.random.default_rng(0)
    cells = np.array([0.5, 0.08, 0.22, 0.2])
    truth = 1 - (cells[1] + cells[3]) / (cells[2] + cells[3])
    held = 0
    for table in rng.multinomial(200, cells, size=300):
        estimate = fewer_failures(Paired(*table.tolist()))
        held += estimate.low <= truth <= estimate.high
    assert held >= 0.91 * 300


def test_wins_with_ties_half():
    assert win_rate(6, 2, 2).value == 0.7
    assert win_rate(3, 5, 0) == share(3, 8)
    assert sign_test(0, 0) == 1.0
    assert sign_test(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)


def test_scores_are_scipys_paired_test():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 25))
    theirs = stats.ttest_rel(second, first)
    ours = score_difference(first, second)
    assert ours.p_value == pytest.approx(theirs.pvalue)
    np.testing.assert_allclose(ours.mean[1:], theirs.confidence_interval(0.95))
    assert score_difference([1.0, 2.0], [1.0, 2.0]).p_value == 1.0
    expected = stats.ttest_1samp(first, 0).confidence_interval(0.95)
    np.testing.assert_allclose(mean_score(first)[1:], expected)


def test_holm_is_statsmodels():
    p_values = np.random.default_rng(0).uniform(0, 0.2, 9)
    expected = np.asarray(multipletests(p_values, method="holm")[1])
    np.testing.assert_allclose(holm(p_values), expected)
    assert holm([]) == []


def test_equal_models_are_seldom_declared_different():
    """A thousand evaluations: three equal models answer 100 prompts of uneven difficulty."""
    rng = np.random.default_rng(0)
    single = any_of_three = intervals = wins = 0
    for _ in range(1000):
        difficulty = rng.beta(2, 1, 100)
        a, b, c = rng.uniform(size=(3, 100)) < difficulty
        tables = [pair_up(x.tolist(), y.tolist()) for x, y in ((a, b), (a, c), (b, c))]
        p_values = [mcnemar(table) for table in tables]
        single += p_values[0] < 0.05
        any_of_three += min(holm(p_values)) < 0.05
        interval = difference(tables[0])
        intervals += not interval.low <= 0 <= interval.high
        won = win_rate(tables[0].first_only, tables[0].second_only, 0)
        wins += not won.low <= 0.5 <= won.high
    assert single <= 50
    assert any_of_three <= 50
    # Intervals come near to their level from either side: three deviations of 1,000 trials.
    assert intervals <= 70
    assert wins <= 70
