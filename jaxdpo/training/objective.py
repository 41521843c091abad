"""The objective of a step as static values: everything that its compiled program depends on."""

from dataclasses import dataclass
from typing import Any

from jaxdpo.losses import LossConfig
from jaxdpo.model.compute import Compute
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params
from jaxdpo.model.dtypes import cast_params


@dataclass(frozen=True)
class MovingReference:
    """A reference that follows the policy (TR-DPO).

    Attributes:
      mixup: Share of the policy in what the reference becomes.
      every: Optimizer steps between its moves.
    """

    mixup: float
    every: int


@dataclass(frozen=True)
class Objective:
    """The objective that a step minimises.

    Attributes:
      model: Architecture.
      compute: How the model is computed; where it has `lora`, adapters are trained.
      loss: The loss.
      batch_size: Pairs of an optimizer step.
      seed: Seed of the adapters and of their dropout.
      has_reference: Whether rewards are against a reference.
      moving: How the reference moves, or None if it stands still.
      keeps_reference: Whether a copy of the parameters stays in memory as the frozen reference.
      offloaded: Whether that copy lies in the host's memory.
      param_dtype: Dtype that parameters are computed with where all of them train; those that train
        are fp32. None takes them as they are.
    """

    model: ModelConfig
    compute: Compute
    loss: LossConfig
    batch_size: int
    seed: int
    has_reference: bool = True
    moving: MovingReference | None = None
    keeps_reference: bool = False
    offloaded: bool = False
    param_dtype: Any = None

    def split(self, trainable: Params, frozen: Params | None) -> tuple[Params, Params | None]:
        """Returns the policy's parameters and adapters.

        The one place that knows what LoRA freezes: with it the base stands still and the adapters
        train, without it all parameters train and there are no adapters.

        Args:
          trainable: What training changes.
          frozen: What it leaves as it is: LoRA's base, or a frozen reference, or None.
        """
        if self.compute.lora is None:
            return self.rounded(trainable), None
        assert frozen is not None
        return frozen, trainable

    def rounded(self, params: Params) -> Params:
        """Rounds fp32 parameters to the dtype that they are computed with.

        bf16 has eight significant bits: an update below a 512th of a weight would leave it where it
        is, which is nearly every update at DPO's learning rates. So what trains is kept in fp32, in
        which small updates add up, and rounded for each forward pass.

        Args:
          params: What trains, or a reference that follows it.
        """
        if self.param_dtype is None:
            return params
        return cast_params(params, self.param_dtype)
