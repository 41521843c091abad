"""The pairs of a data set as training and evaluation take them: tokens, packing and numbers."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from jaxdpo.data.packing.layout import PairSource
from jaxdpo.data.packing.plan import BatchShape, Packer


class PairColumns(NamedTuple):
    """The numbers of each pair beside its tokens; None for a column that there is not.

    Over a data set they are f32 `[N]` on the host; `at` puts them where the pairs stand in a batch,
    f32 `[..., R, P]`. A new column is a field here, a row in `runs/columns.py`, and the loss that
    reads it.

    Attributes:
      reference: `[..., 2]`, reference log-probs of both completions, in nats; None if the step
        computes them, or if there is no reference.
      weights: Factors on the pairs' losses.
      margins: Target margins of reward.
      labels: For answers labelled one by one (KTO): 1 if found good, 0 if not.
    """

    reference: Any = None
    weights: Any = None
    margins: Any = None
    labels: Any = None

    def at(self, pair_index: np.ndarray) -> Self:
        """Returns the columns by slot of a batch, 0 where no pair stands.

        Args:
          pair_index: i32 `[..., R, P]`, each slot's pair, or -1.
        """

        def by_slot(values: np.ndarray) -> np.ndarray:
            # A column of shape [N, 2] needs the mask to have an axis for its last one.
            trailing = (1,) * (values.ndim - 1)
            present = pair_index.reshape(*pair_index.shape, *trailing) >= 0
            return np.where(present, values[pair_index], np.float32(0))

        return jax.tree.map(by_slot, self)


@dataclass(frozen=True)
class PlannedPairs:
    """Tokenised pairs with their packing and their columns.

    Attributes:
      source: The tokenised pairs.
      packer: Their packing into rows.
      shape: The one static shape that holds every microbatch.
      columns: Their numbers, f32 `[N]`.
    """

    source: PairSource
    packer: Packer
    shape: BatchShape
    columns: PairColumns
