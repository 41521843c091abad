"""The losses written from their papers in NumPy's widest float, naively, apart from the package.

Every function takes one pair: `a`, `d` log-ratios of chosen and rejected completion, or `c`, `r`
their log-probs; `n`, `m` their tokens. Nothing here is stabilised: eighty-bit floats hold e^±11000.
"""

import numpy as np

Wide = np.longdouble


def sigma(x):
    return 1 / (1 + np.exp(-x))


def log_sigma(x):
    # The identity keeps precision where σ rounds to 1, which eighty bits do at 44.
    return -np.log1p(np.exp(-x)) if x > -11000 else x


def divergence(kind, alpha):
    return {
        "reverse_kl": lambda u: u,
        "forward_kl": lambda u: 1 - np.exp(-u),
        "js_divergence": lambda u: np.log(Wide(2)) + log_sigma(u),
        "alpha_divergence": lambda u: (np.exp((alpha - 1) * u) - 1) / (alpha - 1),
    }[kind]


def dpo(a, d, beta, epsilon=0, margin=0):
    x = beta * (a - d) - margin
    return -(1 - epsilon) * log_sigma(x) - epsilon * log_sigma(-x)


def hinge(a, d, beta, margin=0):
    return max(Wide(0), 1 - (beta * (a - d) - margin))


def ipo(a, d, n, m, beta):
    return (a / n - d / m - 1 / (2 * beta)) ** 2


def sigmoid_norm(a, d, n, m, beta, margin=0):
    return -log_sigma(beta * (a / n - d / m) - margin)


def robust(a, d, beta, epsilon):
    x = beta * (a - d)
    return (-(1 - epsilon) * log_sigma(x) + epsilon * log_sigma(-x)) / (1 - 2 * epsilon)


def exo(a, d, beta, epsilon):
    x = beta * (a - d)
    p = np.array([sigma(x), sigma(-x)])
    log_p = np.array([log_sigma(x), log_sigma(-x)])
    return float((p * (log_p - np.log(np.array([1 - epsilon, epsilon], Wide)))).sum())


def nca(a, d, beta):
    return -log_sigma(beta * a) - log_sigma(-beta * a) / 2 - log_sigma(-beta * d) / 2


def bco(a, d, beta):
    return -log_sigma(beta * a) - log_sigma(-beta * d)


def sppo(a, d, beta):
    # (log-ratio − η(P − ½))² with η = 1 / β and P = 1 and 0.
    return (a - (1 / beta) * Wide(0.5)) ** 2 + (d - (1 / beta) * Wide(-0.5)) ** 2


def apo_zero(a, d, beta):
    return 1 - sigma(beta * a) + sigma(beta * d)


def apo_down(a, d, beta):
    return sigma(beta * a) + 1 - sigma(beta * (a - d))


def discopop(a, d, beta, tau):
    x = beta * (a - d)
    mixing = sigma(x / tau)
    return -log_sigma(x) * (1 - mixing) + np.exp(-x) * mixing


def aot(first, second, beta, epsilon=0):
    """All pairs at once; the sum of their losses."""
    deltas = np.sort(first) - np.sort(second)
    return sum(dpo(delta, Wide(0), beta, epsilon) for delta in deltas)


def sft(c, mean_tokens):
    return -c / mean_tokens


def cpo(c, r, mean_tokens, beta, epsilon=0):
    return dpo(c, r, beta, epsilon) + sft(c, mean_tokens)


def simpo(c, r, n, m, beta, gamma, epsilon=0, margin=0):
    return dpo(c / n, r / m, beta, epsilon, gamma + margin)


def alphapo(c, r, n, m, beta, gamma, alpha):
    def reward(mean):
        return (1 - np.exp(mean) ** (-alpha)) / alpha

    return -log_sigma(beta * (reward(c / n) - reward(r / m)) - gamma)


def kto(a, good, z, beta, desirable, undesirable):
    """λ_y − v(x, y); a is the answer's log-ratio, z the mean of mismatched ones, if positive."""
    if good:
        return desirable - desirable * sigma(beta * (a - z))
    return undesirable - undesirable * sigma(beta * (z - a))


def orpo(c, r, n, m, mean_tokens, beta):
    def odds(mean):
        return np.exp(mean) / (1 - np.exp(mean))

    ratio = np.log(odds(c / n) / odds(r / m))
    return sft(c, mean_tokens) - beta * log_sigma(ratio)
