"""Agreement of judgements, with 95% intervals: shares, and agreement beyond chance."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

_Z = NormalDist().inv_cdf(0.975)


class Estimate(NamedTuple):
    """A figure and the ends of its 95% interval; not a number where it is undefined."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "undefined"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


UNDEFINED = Estimate(math.nan, math.nan, math.nan)


def share(count: float, total: int) -> Estimate:
    """Computes the share `count` of `total`, with Wilson's score interval.

    Wilson 1927, JASA 22:209.

    >>> print(share(8, 10))
    0.800 (0.490 to 0.943)
    """
    if not total:
        return UNDEFINED
    # Unlike p ± z·sqrt(p(1−p)/n) it is right for few answers and for shares near 0 and 1, which is
    # where judges of good models are: of 20 out of 20 it says 0.84 to 1, and not 1 to 1.
    p, z2 = count / total, _Z**2 / total
    centre = (p + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(p * (1 - p) / total + z2 / (4 * total)) / (1 + z2)
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> Estimate:
    """Computes Cohen's κ of two raters, with a large-sample 95% interval.

    κ = (p − e) / (1 − e) for an agreement p, of which e comes by chance given how often each rater
    says yes (Cohen 1960). It is undefined where both only ever say one and the same thing. The
    interval is that of Fleiss, Cohen and Everitt 1969, Psychological Bulletin 72:323.

    Args:
      first: One rater's judgement of each item.
      second: The other's, of the same items.
    """
    n = len(first)
    both = list(zip(first, second, strict=True))
    table = [[both.count((a, b)) / n if n else 0.0 for b in (False, True)] for a in (False, True)]
    rows = [sum(row) for row in table]
    columns = [table[0][j] + table[1][j] for j in (0, 1)]
    agreed = table[0][0] + table[1][1]
    chance = rows[0] * columns[0] + rows[1] * columns[1]
    if not n or chance == 1:
        return UNDEFINED
    kappa = (agreed - chance) / (1 - chance)
    # The cells on the diagonal (agreement) and off it weigh differently, because a disagreement
    # changes both the agreement and what chance would bring.
    diagonal = sum(table[i][i] * (1 - (rows[i] + columns[i]) * (1 - kappa)) ** 2 for i in (0, 1))
    off = (1 - kappa) ** 2 * sum(table[i][1 - i] * (columns[i] + rows[1 - i]) ** 2 for i in (0, 1))
    variance = (diagonal + off - (kappa - chance * (1 - kappa)) ** 2) / (n * (1 - chance) ** 2)
    half = _Z * math.sqrt(max(0.0, variance))
    return Estimate(kappa, max(-1.0, kappa - half), min(1.0, kappa + half))
