"""The table of losses: a loss's formula, what it reads, and what it asks of the step."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax

from jaxdpo.losses import against_reference as ref
from jaxdpo.losses import coupled
from jaxdpo.losses import without_reference as free

LossName = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "sigmoid_norm",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "orpo",
    "simpo",
    "cpo",
    "alphapo",
    "sft",
    "kto",
]


@dataclass(frozen=True)
class Loss:
    """A loss of the table.

    Attributes:
      formula: The loss of each pair. Its parameters are options of `LossConfig` and the arrays that
        `mixture` makes of a batch; both are passed by name.
      options: The fields of `LossConfig`, and the keys of `data` that name a number of each pair,
        which the loss reads. All others must stay at their defaults where no chosen loss reads
        them.
      needs_reference: Whether it compares the policy with a reference.
      couples: Whether a pair's loss depends on the other pairs of its optimizer step.
      sorts: Whether it is a sum over ranks: it has no value for a single pair.
      averages: Whether, without a reference, it compares log-probs a token, so that its implicit
        rewards are of those.
    """

    formula: Callable[..., jax.Array]
    options: tuple[str, ...]
    needs_reference: bool = True
    couples: bool = False
    sorts: bool = False
    averages: bool = False

    @property
    def parameters(self) -> frozenset[str]:
        """Names of the formula's parameters."""
        return frozenset(inspect.signature(self.formula).parameters)


# Options that come in groups. A divergence is applied to the log-ratios before the formula.
_DIVERGENCE = ("f_divergence", "alpha")
# Discounts the longer completion's tail in the log-probs (LD-DPO), weighs pairs by the policy
# (WPO) or by a number from the data; all three act on each pair by itself.
_PER_PAIR = ("ld_alpha", "use_weighting", "data.weight_key")

LOSSES: dict[LossName, Loss] = {
    "sigmoid": Loss(
        ref.sigmoid_loss,
        ("beta", "label_smoothing", "data.margin_key", *_DIVERGENCE, *_PER_PAIR),
    ),
    "hinge": Loss(ref.hinge_loss, ("beta", "data.margin_key", *_DIVERGENCE, *_PER_PAIR)),
    "ipo": Loss(ref.ipo_loss, ("beta", *_DIVERGENCE, *_PER_PAIR)),
    "sigmoid_norm": Loss(
        ref.sigmoid_norm_loss, ("beta", "data.margin_key", *_DIVERGENCE, *_PER_PAIR)
    ),
    "robust": Loss(ref.robust_loss, ("beta", "label_smoothing", *_DIVERGENCE, *_PER_PAIR)),
    "exo_pair": Loss(ref.exo_pair_loss, ("beta", "label_smoothing", *_DIVERGENCE, *_PER_PAIR)),
    "nca_pair": Loss(ref.nca_pair_loss, ("beta", *_PER_PAIR)),
    "bco_pair": Loss(ref.bco_pair_loss, ("beta", *_PER_PAIR)),
    "sppo_hard": Loss(ref.sppo_hard_loss, ("beta", *_PER_PAIR)),
    # A sorted loss is by rank, so that no factor can be given to a pair.
    "aot": Loss(
        coupled.aot_loss, ("beta", "label_smoothing", "ld_alpha"), couples=True, sorts=True
    ),
    "aot_unpaired": Loss(
        coupled.aot_unpaired_loss, ("beta", "label_smoothing", "ld_alpha"), couples=True, sorts=True
    ),
    "apo_zero": Loss(ref.apo_zero_loss, ("beta", *_PER_PAIR)),
    "apo_down": Loss(ref.apo_down_loss, ("beta", *_PER_PAIR)),
    "discopop": Loss(ref.discopop_loss, ("beta", "discopop_tau", *_DIVERGENCE, *_PER_PAIR)),
    "orpo": Loss(free.orpo_loss, ("beta", *_PER_PAIR), needs_reference=False, averages=True),
    "simpo": Loss(
        free.simpo_loss,
        ("beta", "gamma", "label_smoothing", "data.margin_key", *_PER_PAIR),
        needs_reference=False,
        averages=True,
    ),
    "cpo": Loss(free.cpo_loss, ("beta", "label_smoothing", *_PER_PAIR), needs_reference=False),
    "alphapo": Loss(
        free.alphapo_loss,
        ("beta", "gamma", "alpha", *_PER_PAIR),
        needs_reference=False,
        averages=True,
    ),
    # There is no rejected completion whose tail could be longer, and so no `ld_alpha`.
    "sft": Loss(free.sft_loss, ("use_weighting", "data.weight_key"), needs_reference=False),
    # Every answer's loss reads the mean over the step's mismatched answers.
    "kto": Loss(
        coupled.kto_loss,
        ("beta", "desirable_weight", "undesirable_weight", "data.weight_key"),
        couples=True,
    ),
}


def readers(option: str) -> list[LossName]:
    """Returns the losses that read an option, in the table's order."""
    return [name for name, loss in LOSSES.items() if option in loss.options]
