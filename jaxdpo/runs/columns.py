"""The columns of pairs that a run's configuration asks for."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdpo.config import RunConfig
from jaxdpo.data.tokenization.kto_pairs import Examples, LabelledPairs
from jaxdpo.errors import UserError
from jaxdpo.scoring.planned_pairs import PairColumns

# Column ↦ the field of `data` that names its key of the pairs' metadata, and its least value.
_FROM_METADATA = {"weights": ("weight_key", 0.0), "margins": ("margin_key", -math.inf)}


def read_columns(config: RunConfig, pairs: Examples) -> PairColumns:
    """Reads the pairs' weights, margins and labels, f32 `[N]` each, where there are any.

    Raises:
      UserError: For a pair whose metadata holds no such number.
    """
    labels = pairs.labels if isinstance(pairs, LabelledPairs) else None
    columns = {
        name: _numbers(pairs, option, key, least)
        for name, (option, least) in _FROM_METADATA.items()
        if (key := getattr(config.data, option)) is not None
    }
    return PairColumns(**columns, labels=labels)


def _numbers(pairs: Examples, option: str, key: str, least: float) -> np.ndarray:
    found = [pairs.metadata(index).get(key) for index in range(len(pairs))]
    for index, value in enumerate(found):
        if not _is_number(value, least):
            raise UserError(
                f"{pairs.source(index)}: metadata.{key} is {value!r}, but data.{option} reads it "
                "as a number of every pair"
                + (f", {least:g} or more" if math.isfinite(least) else "")
            )
    return np.array(found, np.float32)


def _is_number(value: Any, least: float) -> bool:
    # True and False are integers to Python, and hardly ever meant as numbers in metadata.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value >= least


def blank_columns(config: RunConfig, count: int) -> PairColumns:
    """Makes the columns that a run would read, of ones, where only shape and time count.

    Args:
      config: The run.
      count: How many pairs.
    """
    ones = np.ones(count, np.float32)
    columns: dict[str, Any] = {
        name: ones
        for name, (option, _) in _FROM_METADATA.items()
        if getattr(config.data, option) is not None
    }
    if config.loss.labelled:
        columns["labels"] = ones
    if config.reference_kind == "precomputed":
        columns["reference"] = np.zeros((count, 2), np.float32)
    return PairColumns(**columns)


# A digest of the columns and not of the file: what else stands in metadata is not read.
def metadata_digest(splits: Sequence[PairColumns]) -> str:
    """Computes the SHA-256 of what was read from the metadata of all splits, in hexadecimal."""
    digest = hashlib.sha256()
    for columns in splits:
        for name in _FROM_METADATA:
            array = columns._asdict()[name]
            digest.update(b"none" if array is None else array.tobytes())
    return digest.hexdigest()
