"""Pairs that have lengths and no text: to plan and measure without data or a tokenizer."""

from dataclasses import dataclass

import numpy as np

from jaxdpo.data.pairs import TokenizedPair

# Deviation of the logarithm of a length: the middle two thirds lie within a factor of 1.8.
_SPREAD = 0.6


@dataclass(frozen=True)
class RandomPairs:
    """Pairs of random tokens.

    Attributes:
      lengths: i32 `[N, 3]`, tokens of prompt, chosen and rejected.
      vocabulary: Ids are below it.
    """

    lengths: np.ndarray
    vocabulary: int

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenizedPair:
        # Seeded by the index, so that a pair has the same tokens each time it is read.
        rng = np.random.default_rng(index)
        return TokenizedPair(
            *(rng.integers(0, self.vocabulary, n, dtype=np.int32) for n in self.lengths[index])
        )

    def source(self, index: int) -> str:
        """Returns a name for the pair."""
        return f"random pair {index + 1}"


def assumed_lengths(count: int, prompt: int, completion: int, longest: int) -> np.ndarray:
    """Lengths spread log-normally around medians, i32 `[N, 3]`, the same in every call.

    Args:
      count: Pairs.
      prompt: Median tokens of a prompt.
      completion: Median tokens of a completion.
      longest: Most tokens of a prompt with one completion; longer ones are cut, completions last.
    """
    rng = np.random.default_rng(0)
    medians = np.array([prompt, completion, completion])
    drawn = np.exp(rng.normal(np.log(medians), _SPREAD, (count, 3)))
    lengths = np.maximum(1, np.round(drawn)).astype(np.int32)
    lengths[:, 1:] = np.minimum(lengths[:, 1:], longest - 1)
    lengths[:, 0] = np.minimum(lengths[:, 0], longest - lengths[:, 1:].max(1))
    return lengths
