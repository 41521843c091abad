"""Every loss and option against its paper, TRL 1.16 on the same log-probs, finite differences."""

import warnings
from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdpo.losses import LossConfig
from jaxdpo.losses.mixture import loss_sums, pair_losses
from jaxdpo.losses.table import LossName
from jaxdpo.scoring.logprobs import sum_by_completion, tail_discounts
from jaxdpo.scoring.planned_pairs import PairColumns
from jaxdpo.scoring.scores import CompletionScores
from tests.losses import papers
from tests.losses.papers import Wide
from tests.torch_reference import Accelerator

# kto has labels in place of pairs, and tests of its own.
NAMES = [name for name in get_args(LossName) if name != "kto"]
SORTED = ("aot", "aot_unpaired")
# Options under which each loss is tried, beside its defaults.
OPTIONS = {
    "sigmoid": [{"label_smoothing": 0.2}, {"f_divergence": "forward_kl"}],
    "hinge": [{"f_divergence": "js_divergence"}],
    "ipo": [{"f_divergence": "alpha_divergence", "alpha": 0.3}],
    "sigmoid_norm": [{"f_divergence": "forward_kl"}],
    "robust": [{"label_smoothing": 0.1}],
    "exo_pair": [{"label_smoothing": 0.001, "f_divergence": "js_divergence"}],
    "aot": [{"label_smoothing": 0.1}],
    "aot_unpaired": [{"label_smoothing": 0.1}],
    "discopop": [{"discopop_tau": 0.3}, {"f_divergence": "alpha_divergence"}],
    "simpo": [{"gamma": 1.2, "label_smoothing": 0.1}],
    "cpo": [{"label_smoothing": 0.1}],
    "alphapo": [{"alpha": 0.25, "gamma": 0.1}, {"alpha": -0.5}],
}


def configs():
    for name in NAMES:
        needed = {"label_smoothing": 0.01} if name == "exo_pair" else {}
        yield LossConfig(type=name, **({} if name == "sft" else {"beta": 0.3}), **needed)
        for options in OPTIONS.get(name, ()):
            yield LossConfig(type=name, beta=0.7, **options)


def label(config):
    changed = config.model_dump(exclude_defaults=True, exclude={"beta"})
    return "-".join(str(value) for value in changed.values()) or "sigmoid"


def random_pairs(count=16, seed=0):
    """Log-probs and tokens, f64 `[count, 2]`, of policy and reference."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 30, (count, 2)).astype(float)
    policy = -tokens * rng.uniform(0.2, 3, (count, 2))
    return policy, policy + rng.normal(0, 4, (count, 2)), tokens


def by_paper(config, policy, reference, tokens) -> Any:
    """The losses of all pairs (of sorted losses, their sum), in eighty bits."""
    name, beta, epsilon = config.type[0], Wide(config.beta), Wide(config.label_smoothing)
    policy, reference, tokens = (np.asarray(array, Wide) for array in (policy, reference, tokens))
    alpha = Wide(0.5 if config.alpha is None else config.alpha)
    gamma = Wide(0.5 if config.gamma is None else config.gamma)
    tau = Wide(config.discopop_tau or 0.05)
    mean = tokens[:, 0].mean()
    ratios = policy - reference
    if name == "aot":
        return papers.aot(
            policy[:, 0] - policy[:, 1], reference[:, 0] - reference[:, 1], beta, epsilon
        )
    if name == "aot_unpaired":
        return papers.aot(ratios[:, 0], ratios[:, 1], beta, epsilon)
    f = papers.divergence(config.f_divergence, alpha)

    def loss(c, r, raw_a, raw_d, n, m):
        a, d = f(raw_a), f(raw_d)
        return {
            "sigmoid": lambda: papers.dpo(a, d, beta, epsilon),
            "hinge": lambda: papers.hinge(a, d, beta),
            "ipo": lambda: papers.ipo(a, d, n, m, beta),
            "sigmoid_norm": lambda: papers.sigmoid_norm(a, d, n, m, beta),
            "robust": lambda: papers.robust(a, d, beta, epsilon),
            "exo_pair": lambda: papers.exo(a, d, beta, epsilon),
            "nca_pair": lambda: papers.nca(raw_a, raw_d, beta),
            "bco_pair": lambda: papers.bco(raw_a, raw_d, beta),
            "sppo_hard": lambda: papers.sppo(raw_a, raw_d, beta),
            "apo_zero": lambda: papers.apo_zero(raw_a, raw_d, beta),
            "apo_down": lambda: papers.apo_down(raw_a, raw_d, beta),
            "discopop": lambda: papers.discopop(a, d, beta, tau),
            "orpo": lambda: papers.orpo(c, r, n, m, mean, beta),
            "simpo": lambda: papers.simpo(c, r, n, m, beta, gamma, epsilon),
            "cpo": lambda: papers.cpo(c, r, mean, beta, epsilon),
            "alphapo": lambda: papers.alphapo(c, r, n, m, beta, gamma, alpha),
            "sft": lambda: papers.sft(c, mean),
        }[name]()

    columns = np.concatenate([policy, ratios, tokens], axis=1)
    return np.array([loss(*row) for row in columns], Wide)


def completions(policy, tokens):
    logps = jnp.asarray(policy, jnp.float32)
    return CompletionScores(logps, logps, jnp.asarray(tokens, jnp.float32))


@partial(jax.jit, static_argnums=0)
def ours(config, policy, reference, tokens):
    scores = completions(policy, tokens)
    everything = jnp.ones(len(policy), bool)
    columns = PairColumns(reference)
    losses = pair_losses(config, scores, columns, everything, scores.tokens[:, 0].mean())
    return losses[config.type[0]]


@partial(jax.jit, static_argnums=0)
def our_gradient(config, policy, reference, tokens):
    return jax.grad(lambda policy: ours(config, policy, reference, tokens).sum())(policy)


def f32(*arrays):
    return (jnp.asarray(array, jnp.float32) for array in arrays)


@pytest.mark.parametrize("config", configs(), ids=label)
def test_values_and_gradients_are_the_papers(config):
    policy, reference, tokens = random_pairs()
    expected = by_paper(config, policy, reference, tokens)
    actual = np.asarray(ours(config, *f32(policy, reference, tokens)))
    if config.type[0] in SORTED:
        actual = actual.sum()
    np.testing.assert_allclose(actual, expected.astype(float), rtol=2e-4, atol=2e-5)
    gradient = np.asarray(our_gradient(config, *f32(policy, reference, tokens)))
    step, numeric = 1e-6, np.zeros_like(policy)
    for index in np.ndindex(*policy.shape):
        up, down = policy.copy(), policy.copy()
        up[index] += step
        down[index] -= step
        rise = by_paper(config, up, reference, tokens) - by_paper(config, down, reference, tokens)
        numeric[index] = float(np.sum(rise)) / (up[index] - down[index])
    np.testing.assert_allclose(gradient, numeric, rtol=2e-3, atol=1e-4 * np.abs(numeric).max())


@pytest.mark.parametrize("config", configs(), ids=label)
def test_extreme_log_probs_are_finite_and_right(config):
    far = [(-1.0, -1e4), (-1e4, -1.0), (-1e4, -1e4), (-1e-3, -1e-3)]
    for policy in far:
        for reference in far:
            pair = np.array([policy]), np.array([reference]), np.array([[10.0, 7.0]])
            value = np.asarray(ours(config, *f32(*pair)))
            gradient = np.asarray(our_gradient(config, *f32(*pair)))
            assert np.isfinite(value).all() and np.isfinite(gradient).all(), (policy, reference)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                expected = float(np.sum(by_paper(config, *pair)))
            # The divergences' e^x goes on as a straight line above x = 30.
            straight = config.f_divergence == "reverse_kl" and config.type != ("alphapo",)
            if straight and np.isfinite(expected):
                np.testing.assert_allclose(value.sum(), expected, rtol=1e-3, atol=1e-3)


def by_trl(config, token_logps, reference, counts, weights_term=None):
    """TRL's own `DPOTrainer._compute_loss` on given log-probs, ragged by counts."""
    from trl import DPOTrainer  # pyright: ignore[reportPrivateImportUsage]  # exported lazily

    pairs, longest = len(counts), int(counts.max())
    order = [(pair, side) for side in (0, 1) for pair in range(pairs)]
    padded, mask = np.zeros((2 * pairs, longest)), np.zeros((2 * pairs, longest + 1), int)
    squares = np.zeros((2 * pairs, longest))
    for row, (pair, side) in enumerate(order):
        length = int(counts[pair, side])
        padded[row, :length] = token_logps[pair][side]
        mask[row, 1 : length + 1] = 1
        if weights_term is not None:
            squares[row, :length] = weights_term[pair][side]
    # TRL's alpha-divergence knows no float64.
    logps = torch.tensor(padded, dtype=torch.float32, requires_grad=True)
    outputs = SimpleNamespace(
        log_probs=logps,
        log_sum_sq_probs=torch.tensor(squares, dtype=torch.float32),
        entropy=torch.zeros_like(logps),
        mean_logits=torch.zeros_like(logps),
        is_top1=torch.zeros(logps.shape, dtype=torch.bool),
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        ld_alpha=config.ld_alpha,
        precompute_ref_logps=True,
        f_divergence_type=config.f_divergence,
        f_alpha_divergence_coef=0.5 if config.alpha is None else config.alpha,
        loss_types=list(config.type),
        loss_weights=list(config.weights or [1.0] * len(config.type)),
        beta=config.beta,
        label_smoothing=config.label_smoothing,
        args=SimpleNamespace(discopop_tau=config.discopop_tau or 0.05),
        use_weighting=config.use_weighting,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": torch.tensor(mask),
        "completion_mask": torch.tensor(mask),
        "ref_chosen_logps": torch.tensor(reference[:, 0], dtype=torch.float32),
        "ref_rejected_logps": torch.tensor(reference[:, 1], dtype=torch.float32),
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    loss.backward()
    assert logps.grad is not None
    gradients = logps.grad.numpy()
    ragged: list[list[Any]] = [[None, None] for _ in range(pairs)]
    for row, (pair, side) in enumerate(order):
        ragged[pair][side] = gradients[row, : int(counts[pair, side])]
    return loss.item(), ragged


def ours_of_tokens(config, token_logps, reference, counts, weights_term=None):
    """Our loss and its gradient in every token's log-prob, through the packed layout's sums."""
    pairs = len(counts)
    flat = np.concatenate([ids for pair in token_logps for ids in pair])
    lengths = counts.astype(int).reshape(-1)
    pair_ids = jnp.asarray(np.repeat(np.arange(pairs).repeat(2) + 1, lengths))[None]
    branches = jnp.asarray(np.repeat(np.tile([1, 2], pairs), lengths))[None]
    summed = partial(
        sum_by_completion, score_pair_RS=pair_ids, score_branch_RS=branches, pairs=pairs
    )
    squares = None
    if weights_term is not None:
        squares = jnp.asarray(np.concatenate([ids for pair in weights_term for ids in pair]))

    def loss(logps):
        tokens = summed(jnp.ones_like(logps)[None])
        plain = summed(logps[None])
        weighted, log_weights = plain, None
        if config.ld_alpha is not None:
            factors = tail_discounts(pair_ids, branches, tokens, config.ld_alpha)
            weighted = summed(logps[None] * factors)
        if squares is not None:
            log_weights = (summed((logps - squares)[None]) / tokens)[0]
        scores = CompletionScores(weighted[0], plain[0], tokens[0], log_weights)
        mean = scores.tokens[:, 0].mean()
        everything = jnp.ones(pairs, bool)
        columns = PairColumns(jnp.asarray(reference, jnp.float32))
        sums = loss_sums(config, scores, columns, everything, mean)
        return sums["loss"] / pairs

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(flat, jnp.float32))
    parts = np.split(np.asarray(gradient), np.cumsum(lengths)[:-1])
    return float(value), [[parts[2 * pair], parts[2 * pair + 1]] for pair in range(pairs)]


def token_data(pairs=6, seed=1):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, (pairs, 2))
    token_logps = [[rng.uniform(-3, -0.1, n) for n in pair] for pair in counts]
    squares = [[rng.uniform(-2, -0.1, n) for n in pair] for pair in counts]
    sums = np.array([[ids.sum() for ids in pair] for pair in token_logps])
    return token_logps, sums + rng.normal(0, 2, sums.shape), counts, squares


TRL_CONFIGS = [
    *[config for config in configs() if config.type[0] not in ("orpo", "simpo", "cpo", "alphapo")],
    LossConfig(type=["sigmoid", "bco_pair", "sft"], weights=[0.8, 0.2, 1.0]),
    LossConfig(type=["sigmoid", "sft"]),
    LossConfig(type="sigmoid", ld_alpha=0.4),
    LossConfig(type=["ipo", "sft"], ld_alpha=0.0),
    LossConfig(type="sigmoid", use_weighting=True),
    LossConfig(type="apo_zero", use_weighting=True, ld_alpha=0.5),
]


@pytest.mark.parametrize("config", TRL_CONFIGS, ids=label)
def test_values_and_gradients_are_trls(config):
    token_logps, reference, counts, squares = token_data()
    term = squares if config.use_weighting else None
    value, gradients = ours_of_tokens(config, token_logps, reference, counts, term)
    if config.type == ("sigmoid",) and config.label_smoothing:
        # TRL 1.16 ignores label_smoothing here: its loss is the one without.
        theirs, _ = by_trl(config, token_logps, reference, counts)
        plain = config.model_copy(update={"label_smoothing": 0.0})
        assert theirs == by_trl(plain, token_logps, reference, counts)[0]
        assert abs(value - theirs) > 1e-2
        return
    theirs, expected = by_trl(config, token_logps, reference, counts, term)
    np.testing.assert_allclose(value, theirs, rtol=1e-4, atol=1e-6)
    for one, other in zip(gradients, expected, strict=True):
        for side in (0, 1):
            np.testing.assert_allclose(one[side], other[side], rtol=1e-3, atol=1e-6)


def without_reference_by_trl(config, policy, tokens):
    """TRL's own CPOTrainer and ORPOTrainer on given log-probs: the mean loss without the NLL."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    name = config.type[0]
    logps = torch.tensor(policy if name == "cpo" else policy / tokens, requires_grad=True)
    if name == "orpo":
        trainer = SimpleNamespace(beta=config.beta, accelerator=Accelerator())
        # In float32 and as a term that is taken off the loss.
        value = -ORPOTrainer.odds_ratio_loss(trainer, logps[:, 0], logps[:, 1])[0].mean()
    else:
        trainer = SimpleNamespace(
            alpha=(0.5 if config.alpha is None else config.alpha) if name == "alphapo" else 0.0,
            loss_type="sigmoid" if name == "cpo" else "simpo",
            simpo_gamma=0.5 if config.gamma is None else config.gamma,
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            accelerator=Accelerator(),
        )
        value = CPOTrainer.cpo_loss(trainer, logps[:, 0], logps[:, 1])[0].mean()
    value.backward()
    assert logps.grad is not None
    gradient = logps.grad.numpy() / (1 if name == "cpo" else tokens)
    return value.item(), gradient


@pytest.mark.parametrize(
    "config",
    [config for config in configs() if config.type[0] in ("orpo", "simpo", "cpo", "alphapo")],
    ids=label,
)
def test_losses_without_reference_are_trls(config):
    policy, reference, tokens = random_pairs()
    expected, expected_gradient = without_reference_by_trl(config, policy, tokens)
    value = np.asarray(ours(config, *f32(policy, reference, tokens))).mean()
    gradient = np.asarray(our_gradient(config, *f32(policy, reference, tokens))) / len(policy)
    if config.type[0] in ("orpo", "cpo"):
        # Both add the NLL a token of the chosen completions (ORPO's of TRL: of the prompt too).
        mean = tokens[:, 0].mean()
        expected += (-policy[:, 0] / mean).mean()
        expected_gradient[:, 0] -= 1 / mean / len(policy)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    scale = np.abs(expected_gradient).max()
    np.testing.assert_allclose(gradient, expected_gradient, rtol=2e-3, atol=1e-5 * scale)


def test_trl_discopop_is_nan_where_ours_is_right():
    token_logps, reference, counts, _ = token_data(pairs=1)
    config = LossConfig(type="discopop", beta=1.0)
    far = reference + np.array([[1e3, 0.0]])
    x = torch.tensor(-1000.0)
    theirs = -torch.nn.functional.logsigmoid(x) * (1 - torch.sigmoid(x / 0.05))
    theirs += torch.exp(-x) * torch.sigmoid(x / 0.05)
    assert torch.isnan(theirs)
    value, _ = ours_of_tokens(config, token_logps, far, counts)
    sums = np.array([[ids.sum() for ids in pair] for pair in token_logps])
    np.testing.assert_allclose(value, float(by_paper(config, sums, far, counts)[0]), rtol=1e-4)


def test_alphapo_at_zero_is_simpo():
    policy, reference, tokens = random_pairs()
    arrays = tuple(f32(policy, reference, tokens))
    alpha = ours(LossConfig(type="alphapo", alpha=0.0), *arrays)
    np.testing.assert_array_equal(alpha, ours(LossConfig(type="simpo"), *arrays))


@pytest.mark.parametrize("kind", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_divergences_agree_with_dpo_at_the_reference(kind):
    # f' = 0 and f'' = 1 there (JS: ½), so loss and, but for that factor, slope are DPO's.
    zero, tokens = np.zeros((1, 2)), np.ones((1, 2))
    arrays = tuple(f32(zero, zero, tokens))
    config = LossConfig(type="sigmoid", f_divergence=kind)
    np.testing.assert_allclose(ours(config, *arrays), np.log(2), rtol=1e-6)
    factor = 0.5 if kind == "js_divergence" else 1.0
    gradient = our_gradient(config, *arrays)
    np.testing.assert_allclose(gradient, factor * np.array([[-0.05, 0.05]]), rtol=1e-5)


def test_margins_and_weights_from_the_data_by_hand():
    policy, reference, tokens = random_pairs(2)
    margins, weights = np.array([0.3, 1.5]), np.array([2.0, 0.5])
    scores = completions(policy, tokens)
    ratios = policy - reference
    config = LossConfig(type=["sigmoid", "hinge"], weights=[1.0, 0.5], beta=0.2)
    expected = {"loss": 0.0, "loss/sigmoid": 0.0, "loss/hinge": 0.0}
    for (a, d), margin, weight in zip(ratios, margins, weights, strict=True):
        expected["loss/sigmoid"] += weight * float(papers.dpo(a, d, 0.2, 0, margin))
        expected["loss/hinge"] += weight * float(papers.hinge(a, d, 0.2, margin))
    expected["loss"] = expected["loss/sigmoid"] + 0.5 * expected["loss/hinge"]
    columns = PairColumns(*f32(reference, weights, margins))
    actual = loss_sums(config, scores, columns, jnp.ones(2, bool), scores.tokens[:, 0].mean())
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    needed = {"label_smoothing": 0.01} if name == "exo_pair" else {}
    config = LossConfig(type=name, **needed)
    policy, reference, tokens = random_pairs(6)
    mean = jnp.float32(tokens[:, 0].mean())

    def total(policy, reference, tokens, is_pair):
        columns = PairColumns(reference)
        return loss_sums(config, completions(policy, tokens), columns, is_pair, mean)["loss"]

    arrays = tuple(f32(policy, reference, tokens))
    padded = tuple(jnp.insert(array, jnp.array([1, 4]), 0.0, axis=0) for array in arrays)
    is_pair = jnp.array([True, False, True, True, True, False, True, True])
    alone, gradient = jax.value_and_grad(total)(*arrays, jnp.ones(6, bool))
    among, gradient_padded = jax.value_and_grad(total)(*padded, is_pair)
    np.testing.assert_allclose(among, alone, rtol=1e-5)
    np.testing.assert_allclose(gradient_padded[np.flatnonzero(is_pair)], gradient, rtol=1e-5)
    assert not np.asarray(gradient_padded)[~np.asarray(is_pair)].any()
