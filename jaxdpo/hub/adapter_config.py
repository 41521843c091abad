"""Reads adapter_config.json of PEFT: what an adapter computes, or the field that stands in the way.

Fields are known one by one. A version of PEFT to come may add another that changes the arithmetic,
so a field that is not known is refused by name unless it holds nothing.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from jaxdpo.errors import UserError
from jaxdpo.hub.folder import read_json

ADAPTER_CONFIG = "adapter_config.json"

# Fields that `AdapterConfig` holds.
_READ = (
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
    "init_lora_weights", "ensure_weight_tying", "base_model_name_or_path", "modules_to_save",
    "trainable_token_indices", "revision",
)  # fmt: skip

# Fields that do not change what a trained adapter computes. Which modules are adapted is read from
# the tensors, so the patterns that chose them need no second reading.
_HARMLESS = {
    "task_type", "auto_mapping", "peft_version", "inference_mode", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "bias",
    "megatron_core", "runtime_config", "qalora_group_size",
    # Options of an initialisation that init_lora_weights names.
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",
}  # fmt: skip

# Fields whose other values make another function than `x @ a @ b · scale` (with DoRA's magnitude).
_ONLY: dict[str, Any] = {
    "peft_type": "LORA",
    "use_qalora": False,
    "lora_bias": False,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "target_parameters": None,
    "megatron_config": None,
    "velora_config": None,
    "monteclora_config": None,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
}

# Initialisations that leave the base as it is.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
Residual = Literal["pissa", "olora"]
# Initialisations that subtract from the base a term that follows from the base alone.
_RESIDUALS: tuple[Residual, ...] = ("pissa", "olora")


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of adapter_config.json that decide what an adapter computes.

    Attributes:
      path: The file, for messages.
      base: Folder or `org/name` of the base model, or None.
      rank: Rank of modules that no pattern names.
      alpha: Numerator of the scale of modules that no pattern names.
      ranks: Pattern of module names ↦ rank.
      alphas: Pattern of module names ↦ alpha.
      dropout: Of the adapters' inputs, in training.
      rank_stabilised: Whether the scale is alpha / √rank (https://arxiv.org/abs/2312.03732).
      residual: The term that was subtracted from the base before training, or None.
      tied: Whether a saved embedding is the head too.
      dora: Whether the modules' magnitudes are trained (https://arxiv.org/abs/2402.09353).
      saved: Names of modules that the adapter holds whole.
      tokens: Name of an embedding or head, "" for the embedding ↦ the token ids whose rows of it
        the adapter holds.
    """

    path: Path
    base: str | None
    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    dropout: float = 0.0
    rank_stabilised: bool = False
    residual: Residual | None = None
    tied: bool = False
    dora: bool = False
    saved: tuple[str, ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def tokens_of(self, module: str, embedding: bool) -> tuple[int, ...]:
        """Returns the token ids whose rows of an embedding or head the adapter holds.

        Args:
          module: Name of the module.
          embedding: Whether it is the input embedding, for which a list without a name stands.
        """
        named = (ids for name, ids in self.tokens.items() if name and module.endswith(name))
        return next(named, self.tokens.get("", ()) if embedding else ())

    @property
    def scale(self) -> float:
        """Factor on the `x @ a @ b` of modules that no pattern names."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def rank_of(self, module: str) -> int:
        """Returns the rank that the patterns give a module."""
        return _matched(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Returns the factor on a module's `x @ a @ b`."""
        rank, alpha = self.rank_of(module), _matched(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _matched(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Returns the value of the first pattern that a module's whole name, or its end, matches."""
    for pattern, value in patterns.items():
        # The rule of PEFT's get_pattern_key, in its words: from a dot, or the start, to the end.
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Reads the adapter_config.json of a folder.

    Raises:
      UserError: Naming a field that is missing, of the wrong kind, or not implemented.
    """
    path, found = folder / ADAPTER_CONFIG, read_json(folder, ADAPTER_CONFIG)
    for name, value in found.items():
        if name in _ONLY and (value or None) != (_ONLY[name] or None):
            raise UserError(f"{path}: {name} {value!r} is not supported, only {_ONLY[name]!r}")
        # False, null and empty are how every option of PEFT is switched off.
        if name not in {*_READ, *_HARMLESS, *_ONLY} and value:
            raise UserError(
                f"{path}: {name} {value!r} is not known here, so the adapter might compute "
                "something else; merge it with peft's merge_and_unload() and load the merged model"
            )
    dropout, rank = found.get("lora_dropout", 0.0), _number(path, found, "r", 8)
    if rank != int(rank):
        raise UserError(f"{path}: r is {rank!r}; it must be a whole number")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(f"{path}: lora_dropout is {dropout!r}; it must be from 0 to below 1")
    return AdapterConfig(
        path=path,
        base=found.get("base_model_name_or_path"),
        rank=int(rank),
        alpha=_number(path, found, "lora_alpha", 8),
        ranks=_patterns(path, found, "rank_pattern"),
        alphas=_patterns(path, found, "alpha_pattern"),
        dropout=dropout,
        rank_stabilised=bool(found.get("use_rslora")),
        residual=_residual(path, found.get("init_lora_weights", True)),
        tied=bool(found.get("ensure_weight_tying")),
        dora=bool(found.get("use_dora")),
        saved=tuple(found.get("modules_to_save") or ()),
        tokens=_tokens(path, found.get("trainable_token_indices") or {}),
    )


class BaseName(NamedTuple):
    """The base model that an adapter folder names.

    Attributes:
      name: Folder or `org/name`.
      revision: Branch, tag or commit on the Hub; None for the newest.
    """

    name: str
    revision: str | None


def base_of(folder: Path) -> BaseName:
    """Returns the model that an adapter folder says it belongs to.

    Raises:
      UserError: If it says none.
    """
    found = read_json(folder, ADAPTER_CONFIG)
    base, revision = found.get("base_model_name_or_path"), found.get("revision")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{folder / ADAPTER_CONFIG}: base_model_name_or_path is {base!r}; it must name the "
            "model that the adapter belongs to. Set model.base=PATH to name it"
        )
    if revision is not None and not isinstance(revision, str):
        raise UserError(
            f"{folder / ADAPTER_CONFIG}: revision is {revision!r}; it must be the name of a branch "
            "or tag, or a commit"
        )
    return BaseName(base, revision or None)


def _number(path: Path, found: Mapping[str, Any], name: str, default: float) -> float:
    value = found.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        raise UserError(f"{path}: {name} is {value!r}; it must be a number above 0")
    return value


def _tokens(path: Path, given: Any) -> dict[str, tuple[int, ...]]:
    # A list is for the input embedding, whatever its module is called in this family.
    by_module = given if isinstance(given, dict) else {"": given}
    for ids in by_module.values():
        if not isinstance(ids, list) or any(type(one) is not int or one < 0 for one in ids):
            raise UserError(
                f"{path}: trainable_token_indices is {given!r}; it must be a list of token ids, or "
                "map names of modules to such lists"
            )
    return {module: tuple(ids) for module, ids in by_module.items()}


def _patterns(path: Path, found: Mapping[str, Any], name: str) -> dict[str, Any]:
    patterns = found.get(name) or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{path}: {name} is {patterns!r}; it must map patterns to numbers")
    for pattern in patterns:
        _number(path, patterns, pattern, 0)
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{path}: {name} has the pattern {pattern!r}: {error}") from error
    return patterns


def _residual(path: Path, start: Any) -> Residual | None:
    if start in _RESIDUALS:
        return cast(Residual, start)
    if start in _PLAIN_STARTS:
        return None
    # LoftQ, CorDA, LoRA-GA and PiSSA's randomised SVD subtract what depends on data, a quantizer or
    # chance: from the file alone the base that the adapter was trained on cannot be formed again.
    raise UserError(
        f"{path}: init_lora_weights {start!r} changed the base model before training, and how is "
        "not in the folder; merge the adapter where it was trained (peft's merge_and_unload()) "
        "and load the merged model"
    )
