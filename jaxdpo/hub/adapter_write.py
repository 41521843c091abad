"""Writes LoRA adapters in the format of PEFT, so that `peft`, vLLM and TRL load them.

Where a family keeps several linear maps in one tensor (Phi-3's qkv_proj, GPT-2's c_attn), PEFT has
one adapter for all of them. Adapters of q, k and v, of rank r each, become one of rank 3r:

    lora_A [3r, in]   = A_q over A_k over A_v
    lora_B [out, 3r]  = B_q, B_k and B_v along the diagonal, and zeros

DoRA's magnitudes `[out]` stand one after the other, as the rows of `lora_B` do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax

from jaxdpo.errors import UserError
from jaxdpo.hub.adapter_config import ADAPTER_CONFIG
from jaxdpo.hub.adapter_replaced import ADAPTER_WEIGHTS
from jaxdpo.hub.export import TensorSpec, exporting, write_tensors
from jaxdpo.hub.families import Row, Span, family_of
from jaxdpo.hub.read import HEAD
from jaxdpo.hub.tokenizer_files import write_tokenizer
from jaxdpo.hub.write import json_text, tensor_arrays, tensor_specs, write_texts
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params
from jaxdpo.model.lora import LoraConfig, LoraParams


@dataclass(frozen=True)
class AdapterBase:
    """The model that an adapter belongs to.

    Attributes:
      name: Folder or `org/name`, as PEFT will look for it.
      config: Its architecture.
      hf_config: Its config.json.
      saved: Path ↦ parameter that differs from the folder's and is saved with the adapter.
      revision: Branch, tag or commit of a model on the Hub; None for the newest.
    """

    name: str
    config: ModelConfig
    hf_config: Mapping[str, Any]
    saved: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None


def save_adapter(
    folder: str | Path,
    lora: LoraParams,
    lora_config: LoraConfig,
    base: AdapterBase,
    tokenizer: Any = None,
    files: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a folder that `peft` loads on top of the base model.

    Args:
      folder: Where to. An earlier export there is replaced; other folders are refused.
      lora: Adapters.
      lora_config: Their rank and scale.
      base: The model that they belong to.
      tokenizer: Hugging Face tokenizer; None to leave it out.
      files: Text of other files of the folder, by name: README.md.

    Raises:
      UserError: If the folder cannot be written.
    """
    modules = _modules(base.hf_config, base.config)
    rows = _rows(modules, lora_config.rank)
    _check_dora(modules, lora, lora_config)
    specs, arrays = tensor_specs(rows, lora), tensor_arrays(rows, lora)
    saved_rows, saved = _saved(base)
    saved_specs = {
        f"base_model.model.{name}": spec for name, spec in tensor_specs(saved_rows, saved).items()
    }
    saved_arrays = tensor_arrays(saved_rows, saved)
    if jax.process_index() != 0:
        # Every process takes part in gathering the arrays that no process holds whole.
        for _ in (*arrays, *saved_arrays):
            pass
        return
    text = adapter_config_text(modules, specs, lora_config, base)
    with exporting(Path(folder).expanduser()) as temporary:
        write_texts(temporary, {ADAPTER_CONFIG: text, **files})

        def each() -> Any:
            yield from arrays
            yield from saved_arrays

        write_tensors(temporary / ADAPTER_WEIGHTS, {**specs, **saved_specs}, each())
        if tokenizer is not None:
            write_tokenizer(temporary, tokenizer)


def check_adapter(lora: LoraParams, lora_config: LoraConfig, base: AdapterBase) -> None:
    """Describes an adapter as `save_adapter` would, without writing it.

    Args:
      lora: Adapters, or their shapes.
      lora_config: Their rank and scale.
      base: The model that they belong to.

    Raises:
      UserError: If PEFT could not hold it.
    """
    modules = _modules(base.hf_config, base.config)
    rows, (saved_rows, saved) = _rows(modules, lora_config.rank), _saved(base)
    _check_dora(modules, lora, lora_config)
    adapter_config_text(modules, tensor_specs(rows, lora), lora_config, base)
    tensor_specs(saved_rows, saved)


def _check_dora(modules: "Sequence[_Module]", lora: LoraParams, lora_config: LoraConfig) -> None:
    """Raises if DoRA would adapt a part of a fused tensor, whose other part has no magnitudes."""
    if not lora_config.use_dora:
        return
    adapted = {name for linears in lora["layers"].values() for name in linears}
    for module in modules:
        names = {kernel.path.split("/")[-2] for kernel in module.kernels}
        if names & adapted and names - adapted:
            raise UserError(
                f"lora.use_dora: {', '.join(sorted(names))} share one tensor, {module.name}, which "
                "PEFT adapts as a whole; put all of them into lora.targets, or set "
                "export.lora=merged"
            )


def adapter_config_text(
    modules: "Sequence[_Module]",
    specs: Mapping[str, TensorSpec],
    lora_config: LoraConfig,
    base: AdapterBase,
) -> str:
    """Returns the text of adapter_config.json.

    Args:
      modules: What may be adapted.
      specs: The tensors that will be written.
      lora_config: Rank and scale of each linear map's adapter.
      base: The model that the adapter belongs to.
    """
    adapted = [module for module in modules if module.first("lora_A.weight") in specs]
    # vLLM and others allocate by r alone and know no patterns, so r is the largest rank, and
    # lora_alpha keeps alpha / r; smaller modules are the exceptions.
    most = max(len(module.kernels) for module in adapted)
    smaller = {m.name: len(m.kernels) for m in adapted if len(m.kernels) < most}
    # alpha / √(3r) is not alpha / √r, so a fused adapter states its scale by the plain rule.
    stabilised = lora_config.use_rslora and most == 1
    rank, alpha = lora_config.rank, lora_config.alpha
    if lora_config.use_rslora and not stabilised:
        alpha = lora_config.scale * rank
    family = family_of(base.hf_config)
    rows = family.rows(base.config)
    # PEFT finds modules_to_save by the ends of their names.
    stored = {row.path: row.hf_name.removesuffix(".weight") for row in rows}
    whole = sorted({stored[path].split(".")[-1] for path in base.saved})
    return json_text(
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base.name,
            "revision": base.revision,
            "r": most * rank,
            "lora_alpha": most * alpha,
            "rank_pattern": {name: count * rank for name, count in smaller.items()},
            "alpha_pattern": {name: count * alpha for name, count in smaller.items()},
            "lora_dropout": lora_config.dropout,
            "target_modules": sorted(module.name for module in adapted),
            "modules_to_save": whole or None,
            # Without it PEFT leaves a tied head as it was before the embedding was trained.
            "ensure_weight_tying": _ties(base),
            "fan_in_fan_out": not adapted[0].kernels[0].transposed,
            "bias": "none",
            "init_lora_weights": True,
            "use_rslora": stabilised,
            "use_dora": lora_config.use_dora,
            "inference_mode": True,
        }
    )


def _saved(base: AdapterBase) -> tuple[list[Row], Params]:
    """Returns the rows and the tree of the parameters that are saved whole."""
    rows = [row for row in family_of(base.hf_config).rows(base.config) if row.path in base.saved]
    tree: Params = {}
    for path, leaf in base.saved.items():
        *outer, last = path.split("/")
        inner = tree
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = leaf
    if _ties(base):
        # PEFT looks for a tied module's tensor under both of its names.
        rows.append(Row("tied_head/weight", HEAD))
        tree["tied_head"] = tree["embed"]
    return rows, tree


def _ties(base: AdapterBase) -> bool:
    """Tells whether a saved embedding is the head too."""
    return base.config.tied_head and "embed/weight" in base.saved


_Which = Literal["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"]


class _Module(NamedTuple):
    """A module that PEFT adapts: the linear maps that share one tensor of a layer.

    Attributes:
      name: Name in PEFT's target_modules.
      kernels: The family's rows of the kernels in it.
    """

    name: str
    kernels: list[Row]

    def tensor(self, which: _Which) -> str:
        """Returns the name of an adapter's tensor, with {i} for the layer."""
        return f"base_model.model.{self.kernels[0].hf_name.removesuffix('.weight')}.{which}"

    def first(self, which: _Which) -> str:
        """Returns the name of that of the first layer."""
        return self.tensor(which).format(i=self.kernels[0].layer(0))


def _modules(hf_config: Mapping[str, Any], config: ModelConfig) -> list[_Module]:
    kernels: dict[tuple[str, ...], list[Row]] = {}
    for row in family_of(hf_config).rows(config):
        if row.leading and row.path.endswith("/kernel"):
            kernels.setdefault(tuple(row.hf_name.split(".")[:-1]), []).append(row)
    last = [path[-1] for path in kernels]
    # GPT-2 has a c_proj in the attention and another in the MLP; experts have maps of the same
    # names as layers without experts, and are not adapted.
    return [
        _Module(path[-1] if last.count(path[-1]) == 1 else ".".join(path[-2:]), rows)
        for path, rows in kernels.items()
        if rows[0].leading == 1
    ]


def _rows(modules: Sequence[_Module], rank: int) -> list[Row]:
    """Returns the table of adapters: `lora_A` is `[r, in]` and `lora_B` `[out, r]`.

    Args:
      modules: What may be adapted.
      rank: Rank of each linear map's adapter.
    """
    rows = []
    for module in modules:
        for place, kernel in enumerate(module.kernels):
            # Ranks of their own for each map of a fused module, one after the other.
            ranks = None
            if len(module.kernels) > 1:
                ranks = Span(place * rank, rank, len(module.kernels) * rank)
            path = kernel.path.removesuffix("/kernel")
            a, b = module.tensor("lora_A.weight"), module.tensor("lora_B.weight")
            m, layers = module.tensor("lora_magnitude_vector"), kernel.layers
            rows.append(Row(f"{path}/a", a, True, columns=ranks, layers=layers))
            rows.append(Row(f"{path}/b", b, True, kernel.columns, rows=ranks, layers=layers))
            rows.append(Row(f"{path}/m", m, columns=kernel.columns, layers=layers))
    return rows
