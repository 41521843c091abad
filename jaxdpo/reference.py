"""The reference model's log-probs: computed in the step, or once beforehand and kept.

What is kept is found again by content: the weights' values, the token rows, and how they were
computed. A cache made from anything else has another name, so a stale one cannot be used; a part of
one is never given the name of a whole.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.errors import UserError
from jaxdpo.files import replacing

# Raised when the arithmetic of scoring changes.
_VERSION = 1


class ReferenceConfig(BaseModel):
    """Where the reference log-probs come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["precomputed", "adapter_off", "frozen"] = Field(
        default="precomputed",
        description="precomputed: scored once before training and kept with the run; adapter_off: "
        "in every step, by the base model under LoRA; frozen: in every step, by a copy in memory",
    )


def cache_key(weights_digest: str, tokens_fingerprint: str, dtype: str, model: str) -> str:
    """The name of a cache: what its values depend on, hashed.

    Args:
      weights_digest: From `scoring.weights_digest`.
      tokens_fingerprint: Digest of the tokenised pairs.
      dtype: Of activations.
      model: The architecture, as JSON.
    """
    parts = (str(_VERSION), weights_digest, tokens_fingerprint, dtype, model)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load_cached(folder: Path, key: str, count: int) -> np.ndarray | None:
    """The cached log-probs, memory-mapped f32 `[count, 2]`, or None if there is no whole cache."""
    path = folder / f"{key}.npy"
    try:
        logps = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    if logps.shape != (count, 2) or logps.dtype != np.float32 or not np.isfinite(logps).all():
        return None
    return logps


def compute_and_store(
    folder: Path, key: str, count: int, scores: Iterator[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Collects every pair's log-probs and stores them under their key.

    Args:
      folder: Where caches lie; made if missing.
      key: From `cache_key`.
      count: How many pairs there are.
      scores: Indices and log-probs, as `scoring.score_pairs` yields them.

    Returns:
      f32 `[count, 2]`, chosen and rejected, in nats.

    Raises:
      UserError: If the model gives a pair no finite log-prob.
    """
    logps = np.full((count, 2), np.nan, np.float32)
    for indices, values in scores:
        logps[indices] = values
    bad = np.flatnonzero(~np.isfinite(logps).all(axis=1))
    if len(bad):
        raise UserError(
            f"the reference model gives {len(bad)} of {count} pairs no finite log-prob (the first "
            f"is number {bad[0]}); its weights hold NaN or infinity, or overflow in this dtype"
        )
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f"{key}.npy", "wb") as file:
            np.save(file, logps)
    return logps
