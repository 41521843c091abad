"""The reference model's log-probs: computed in the step, or once beforehand and kept.

What is kept is found again by content, by every run that needs the same: the weights' values, the
token rows, and how they were computed. A cache made from anything else has another name, so a stale
one cannot be used; its digest is checked, so a damaged one is not; and it gets its name when it is
whole.

    ~/.cache/jaxdpo/reference/
      <key>.npy      f32 [pairs, 2], memory-mapped by the runs that use it
      <key>.json     {"key", "sha256"}: written last; without it the file beside it does not count
      <key>.<packing>.parts/   of a scoring that was cut off; the next run continues it
"""

import hashlib
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import jax
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from jaxdpo.errors import UserError
from jaxdpo.storage.cache import mark_used, tidy
from jaxdpo.storage.files import file_digest, replacing

ReferenceKind = Literal["precomputed", "adapter_off", "frozen", "moving", "none"]

# Raised when the arithmetic of scoring changes.
_VERSION = 2
_DEFAULT_MIXUP, _DEFAULT_EVERY = 0.6, 512
# Indices of pairs and their log-probs, a microbatch at a time.
Scores = Iterator[tuple[np.ndarray, np.ndarray]]


class ReferenceConfig(BaseModel):
    """Options of the reference log-probs: which model gives them, and when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ReferenceKind | None = Field(
        default=None,
        description="precomputed: scored once before training and kept for all runs; adapter_off: "
        "in every step, by the base model under LoRA; frozen: in every step, by a copy in memory; "
        "moving: by a copy that follows the policy (TR-DPO); none: log-probs of 0; default: "
        "precomputed, or none for losses that read no reference",
    )
    path: str | None = Field(
        default=None,
        description="another model to be the reference, with the same vocabulary; default: the "
        "model that training starts from",
    )
    mixup: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the policy that a moving reference takes on; default: 0.6",
    )
    every: int | None = Field(
        default=None,
        ge=1,
        description="optimizer steps between a moving reference's moves; default: 512",
    )

    offload: bool = Field(
        default=False,
        description="keep a frozen reference in the host's memory, from which a layer at a time "
        "comes to the device in every step",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.path is not None and self.kind not in (None, "precomputed"):
            raise ValueError(
                f"path would be ignored by kind={self.kind}: another model's log-probs are scored "
                "once, beforehand; leave kind out"
            )
        for name in ("mixup", "every"):
            if getattr(self, name) is not None and self.kind != "moving":
                raise ValueError(f"{name} is read by kind=moving alone, not by {self.kind}")
        if self.offload and self.kind != "frozen":
            raise ValueError(f"offload is read by kind=frozen alone, not by {self.kind}")
        return self

    @property
    def moves(self) -> tuple[float, int]:
        """The policy's share in a moving reference, and every how many steps it moves."""
        return self.mixup or _DEFAULT_MIXUP, self.every or _DEFAULT_EVERY


@dataclass(frozen=True)
class ReferenceCache:
    """The place of one model's log-probs of one data set.

    Attributes:
      folder: Where caches lie; made if missing.
      key: From `cache_key`.
      count: How many pairs there are.
    """

    folder: Path
    key: str
    count: int

    @property
    def values(self) -> Path:
        """The file of log-probs."""
        return self.folder / f"{self.key}.npy"

    @property
    def about(self) -> Path:
        """The file that says that they are whole."""
        return self.folder / f"{self.key}.json"


def cache_key(
    weights_digest: str, tokens_fingerprint: str, dtype: str, model: str, ld_alpha: float | None
) -> str:
    """Computes the name of a cache: what its values depend on, hashed.

    Args:
      weights_digest: From `scoring.weights_digest`.
      tokens_fingerprint: Digest of the tokenised pairs.
      dtype: Of activations.
      model: The architecture, as JSON.
      ld_alpha: Factor on the tail of the longer completion.
    """
    parts = (str(_VERSION), weights_digest, tokens_fingerprint, dtype, model, str(ld_alpha))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load_cached(cache: ReferenceCache) -> np.ndarray | None:
    """Opens the cached log-probs, mapped f32 `[count, 2]`; None if there is no whole cache."""
    try:
        about = json.loads(cache.about.read_text(encoding="utf-8"))
        # The digest is of the values' bytes: a flipped bit would bend every step that reads them.
        if about != {"key": cache.key, "sha256": file_digest(cache.values)}:
            return None
        mark_used(cache.about)
        logps = np.load(cache.values, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    if logps.shape != (cache.count, 2) or logps.dtype != np.float32:
        return None
    return logps


def verify_scores(paths: Sequence[Path]) -> bool:
    """Tells whether cached log-probs are as they were written; parts are checked when continued.

    Args:
      paths: The files and folders of one key.
    """
    found = {path.suffix: path for path in paths if path.is_file()}
    if not found:
        return True
    try:
        about = json.loads(found[".json"].read_text(encoding="utf-8"))
        return about == {"key": found[".json"].stem, "sha256": file_digest(found[".npy"])}
    except (OSError, ValueError, KeyError):
        return False


def compute_and_store(
    cache: ReferenceCache,
    packing: str,
    score_from: Callable[[int], Scores],
    save_seconds: float = 60.0,
) -> np.ndarray:
    """Collects every pair's log-probs and stores them under their key.

    What is done is saved once a minute, so that a scoring that is cut off is continued. (Not over
    several processes, which may see different disks: they begin anew.)

    Args:
      cache: Where to.
      packing: Digest of how the pairs are packed into microbatches.
      score_from: Number of the first microbatch ↦ indices and log-probs of it and all later ones.
      save_seconds: Time between saves.

    Returns:
      f32 `[count, 2]`, chosen and rejected, in nats.

    Raises:
      UserError: If the model gives a pair no finite log-prob, or the cache cannot be written.
    """
    alone = jax.process_count() == 1
    parts = cache.folder / f"{cache.key}.{packing[:16]}.parts"
    # NaN until scored, so that a pair that was left out is noticed at the end.
    logps = np.full((cache.count, 2), np.nan, np.float32)
    first = 0
    try:
        if alone:
            parts.mkdir(parents=True, exist_ok=True)
            first = _read_parts(parts, logps)
        waiting: list[tuple[np.ndarray, np.ndarray]] = []
        saved = time.monotonic()
        for number, (indices, values) in enumerate(score_from(first), start=first):
            logps[indices] = values
            waiting.append((indices, values))
            if alone and time.monotonic() - saved >= save_seconds:
                _write_part(parts, first, number + 1, waiting)
                first, waiting, saved = number + 1, [], time.monotonic()
        _check_finite(logps)
        if jax.process_index() == 0:
            _store(cache, logps)
    except OSError as error:
        raise UserError(
            f"{cache.folder}: reference log-probs cannot be written ({error.strerror}); set "
            "data.cache_dir to a folder with room"
        ) from error
    return logps


def _check_finite(logps: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(logps).all(axis=1))
    if len(bad):
        raise UserError(
            f"the reference model gives {len(bad)} of {len(logps)} pairs no finite log-prob (the "
            f"first is number {bad[0]}); its weights hold NaN or infinity, or overflow in this "
            "dtype"
        )


def _store(cache: ReferenceCache, logps: np.ndarray) -> None:
    cache.folder.mkdir(parents=True, exist_ok=True)
    with replacing(cache.values, "wb") as file:
        np.save(file, logps)
    # Of a scoring that was cut off and was packed in another way, too.
    for parts in cache.folder.glob(f"{cache.key}.*.parts"):
        shutil.rmtree(parts, ignore_errors=True)
    # Written last, with the digest of what was written: until then the values do not count.
    with replacing(cache.about) as file:
        json.dump({"key": cache.key, "sha256": file_digest(cache.values)}, file)
    tidy(cache.folder.parent)


def _write_part(
    parts: Path, first: int, end: int, scores: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    # Another run that scores the same and has finished has removed the folder.
    parts.mkdir(parents=True, exist_ok=True)
    with replacing(parts / f"{first:08d}.npz", "wb") as file:
        indices, values = (np.concatenate(arrays) for arrays in zip(*scores, strict=True))
        np.savez(file, indices=indices, logps=values, end=end)


def _read_parts(parts: Path, logps: np.ndarray) -> int:
    """Fills in what was saved, as far as it is whole; returns the first microbatch to be scored."""
    first = 0
    # Each part is called after its first microbatch and says where the next one begins, so that a
    # part which is missing or torn ends the chain.
    while (part := parts / f"{first:08d}.npz").exists():
        try:
            with np.load(part) as saved:
                indices, values, end = saved["indices"], saved["logps"], int(saved["end"])
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            break
        logps[indices] = values
        first = end
    return first
