"""Remedies for a run that goes wrong: settings by name and value, for the loss that it has."""

from dataclasses import dataclass
from typing import Any

from jaxdpo.losses import LossConfig
from jaxdpo.losses.table import LOSSES
from jaxdpo.training.optimizer_config import OptimizerConfig

# Rates are right within a factor of three or so: a fifth is surely another one.
_SLOWER = 5.0
# Half of the tail's log-probs: between 1, which leaves all length in the reward, and 0, which makes
# the longer answer's tail count for nothing (Liu et al. 2024, equation 9).
_LD_ALPHA = 0.5


@dataclass(frozen=True)
class Remedies:
    """Settings of a run that its warnings may ask to change.

    A method returns None where this run's loss does not read what it would change.

    Attributes:
      loss: The loss.
      optimizer: The learning rate and the limit of gradients.
      lora: Whether adapters are trained, whose default rate is another.
      num_steps: Optimizer steps of the run.
    """

    loss: LossConfig
    optimizer: OptimizerConfig
    lora: bool
    num_steps: int

    def slower(self) -> str:
        """Names a lower learning rate."""
        rate = self.optimizer.peak(self.lora)
        return f"set optimizer.learning_rate={rate / _SLOWER:.2g} (now {rate:.2g})"

    def nearer_the_reference(self) -> str | None:
        """Names a larger beta."""
        return self._beta(2.0)

    def smaller_gradients(self) -> str | None:
        """Names a smaller beta: the gradient of a log-sigmoid loss is proportional to it."""
        return self._beta(0.5)

    def _beta(self, factor: float) -> str | None:
        if not self._reads("beta"):
            return None
        return f"set loss.beta={self.loss.beta * factor:.2g} (now {self.loss.beta:.2g})"

    def looser_limit(self, typical_norm: float) -> str:
        """Names a limit of gradients that most steps stay below.

        >>> run.looser_limit(3.96)
        'set optimizer.max_grad_norm=4 (now 1)'
        """
        limit = self.optimizer.max_grad_norm
        return f"set optimizer.max_grad_norm={typical_norm:.2g} (now {limit:g})"

    def shorter(self, steps: int | None = None) -> str:
        """Names a number of steps: those given, or half of the run."""
        steps = max(1, self.num_steps // 2) if steps is None else steps
        return f"set training.max_steps={steps} (now {self.num_steps})"

    def chosen_mixed_in(self) -> str | None:
        """Names the mixture of the loss with that of supervised training."""
        types = self.loss.type
        # Labelled answers can't be mixed with a loss of pairs.
        if "sft" in types or not self._valid(type=(*types, "sft"), weights=None):
            return None
        return f"set loss.type=[{','.join((*types, 'sft'))}] (now {_types(types)})"

    def bounded_margin(self) -> str | None:
        """Names the loss whose rewards stop at a margin, where another loss of pairs is alone."""
        alone = len(self.loss.type) == 1 and not self.loss.labelled and not self.loss.supervised
        if not alone or self.loss.type == ("ipo",) or not self._valid(type=("ipo",)):
            return None
        return f"set loss.type=ipo (now {_types(self.loss.type)}), which stops at a margin"

    def without_length(self) -> str | None:
        """Names what keeps a longer answer's length out of its reward."""
        if self.loss.ld_alpha is None and self._reads("ld_alpha"):
            return f"set loss.ld_alpha={_LD_ALPHA} (now 1)"
        if self.loss.type == ("sigmoid",) and self._valid(type=("sigmoid_norm",)):
            return "set loss.type=sigmoid_norm (now sigmoid)"
        return None

    def _valid(self, **changes: Any) -> bool:
        """Tells whether the loss may be changed so, all else as it is."""
        try:
            LossConfig.model_validate({**self.loss.model_dump(), **changes})
        except ValueError:
            return False
        return True

    def _reads(self, option: str) -> bool:
        return any(option in LOSSES[name].options for name in self.loss.type)


def either(*remedies: str | None) -> str:
    """Joins remedies into one sentence, without those that there are not.

    >>> either("set a=1 (now 2)", None, "add pairs")
    'Set a=1 (now 2), or add pairs'
    """
    said = ", or ".join(remedy for remedy in remedies if remedy is not None)
    return said[:1].upper() + said[1:]


def _types(types: tuple[str, ...]) -> str:
    return types[0] if len(types) == 1 else f"[{','.join(types)}]"
