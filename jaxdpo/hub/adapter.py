"""LoRA adapters in the format of PEFT: adapter_config.json and adapter_model.safetensors.

Where a family keeps several linear maps in one tensor (Phi-3's qkv_proj, GPT-2's c_attn), PEFT has
one adapter for all of them. Adapters of q, k and v, of rank r each, become one of rank 3r:

    lora_A [3r, in]   = A_q over A_k over A_v
    lora_B [out, 3r]  = B_q, B_k and B_v along the diagonal, and zeros
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh
from pydantic import ValidationError

from jaxdpo.devices.sharding import shardings_for
from jaxdpo.errors import UserError
from jaxdpo.hub.export import exporting, write_tensors
from jaxdpo.hub.families import Row, Span, family_of
from jaxdpo.hub.folder import read_json
from jaxdpo.hub.read import lazy_tree, on_devices, open_tensors
from jaxdpo.hub.write import tensor_arrays, tensor_specs, write_json, write_texts
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.lora import LoraConfig, LoraParams, init_lora

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Fields of PEFT's config whose other values make another adapter than `x @ a @ b · alpha / r`.
_ONLY: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "use_qalora": False,
    "lora_bias": False,
    "modules_to_save": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "trainable_token_indices": None,
    "target_parameters": None,
}


def save_adapter(
    folder: str | Path,
    lora: LoraParams,
    lora_config: LoraConfig,
    tokenizer: Any,
    hf_config: Mapping[str, Any],
    config: ModelConfig,
    base: str,
    files: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a folder that `peft` loads on top of the base model.

    Args:
      folder: Where to, as `save_pretrained` has it.
      lora: Adapters.
      lora_config: Their scale.
      tokenizer: Hugging Face tokenizer; None to leave it out.
      hf_config: config.json of the base model.
      config: Its architecture.
      base: Folder or `org/name` of the base model.
      files: Text of other files of the folder, by name: README.md.

    Raises:
      UserError: If the folder cannot be written.
    """
    modules = _modules(hf_config, config)
    rows = _rows(modules, lora_config.rank)
    specs, arrays = tensor_specs(rows, lora), tensor_arrays(rows, lora)
    if jax.process_index() != 0:
        # Every process takes part in gathering the arrays that no process holds whole.
        for _ in arrays:
            pass
        return
    adapted = [module for module in modules if module.tensor("A", 0) in specs]
    described = {
        **_ONLY,
        **_patterns(adapted, lora_config.rank, lora_config.alpha),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora_config.rank,
        "lora_alpha": lora_config.alpha,
        "lora_dropout": lora_config.dropout,
        "target_modules": sorted(module.name for module in adapted),
        "fan_in_fan_out": not adapted[0].kernels[0].transposed,
        "inference_mode": True,
    }
    with exporting(Path(folder).expanduser()) as temporary:
        write_json(temporary / ADAPTER_CONFIG, described)
        write_tensors(temporary / ADAPTER_WEIGHTS, specs, arrays)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        write_texts(temporary, files)


def base_of(folder: Path) -> str:
    """Returns the model that an adapter folder says it belongs to.

    Raises:
      UserError: If it says none.
    """
    base = read_json(folder, ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{folder / ADAPTER_CONFIG}: base_model_name_or_path is {base!r}; it must name the "
            "model that the adapter belongs to"
        )
    return base


def load_adapter(
    folder: Path, config: ModelConfig, hf_config: Mapping[str, Any], mesh: Mesh | None = None
) -> tuple[LoraParams, LoraConfig]:
    """Loads a PEFT adapter folder, strictly, as adapters of a base model.

    Args:
      folder: Adapter folder.
      config: Architecture of the base model.
      hf_config: config.json of the base model.
      mesh: Where to; None for the first device.

    Raises:
      UserError: For another kind of adapter, or tensors that do not fit the base model.
    """
    stored, lora_config = lazy_adapter(folder, config, hf_config)
    return on_devices(stored, None if mesh is None else shardings_for(stored, mesh)), lora_config


def lazy_adapter(
    folder: Path, config: ModelConfig, hf_config: Mapping[str, Any]
) -> tuple[LoraParams, LoraConfig]:
    """Opens what `load_adapter` loads, with the adapters left in their file.

    Args:
      folder: Adapter folder.
      config: Architecture of the base model.
      hf_config: config.json of the base model.

    Returns:
      The adapters, each a `Stored`, and their configuration.
    """
    described = read_json(folder, ADAPTER_CONFIG)
    for field, only in _ONLY.items():
        _check_only(folder, described, field, only)
    modules = _modules(hf_config, config)
    tensors = open_tensors(folder, ADAPTER_WEIGHTS)
    adapted = [module for module in modules if module.tensor("A", 0) in tensors]
    if not adapted:
        raise UserError(f"{folder / ADAPTER_WEIGHTS}: adapts no linear map of the model")
    try:
        lora_config = LoraConfig(
            rank=described.get("r", 8),
            alpha=described.get("lora_alpha", 8),
            targets=tuple(sorted(name for module in adapted for name in module.maps)),
            dropout=described.get("lora_dropout", 0.0),
        )
    except ValidationError as error:
        raise UserError(f"{folder / ADAPTER_CONFIG}: {error.errors()[0]['msg']}") from None
    blocks = _patterns(adapted, lora_config.rank, lora_config.alpha)
    apart = bool(described.get("rank_pattern"))
    for field, written in blocks.items():
        _check_only(folder, described, field, written if apart else {})
    expected = jax.eval_shape(lambda: init_lora(config, lora_config, jax.random.key(0)))
    # PEFT's own adapter of such a tensor is one that its maps share.
    rows = _rows(modules, lora_config.rank if apart else None)
    return lazy_tree(folder, tensors, rows, expected), lora_config


def _check_only(folder: Path, described: Mapping[str, Any], field: str, only: Any) -> None:
    if (described.get(field) or None) != (only or None):
        raise UserError(
            f"{folder / ADAPTER_CONFIG}: {field} {described.get(field)!r} is not supported, "
            f"only {only!r}"
        )


class _Module(NamedTuple):
    """A linear map that PEFT adapts: of a layer, one tensor.

    Attributes:
      name: What PEFT's patterns call it.
      kernels: The family's rows of our kernels in it.
    """

    name: str
    kernels: list[Row]

    @property
    def maps(self) -> list[str]:
        """Names of the linear maps in it."""
        return [row.path.split("/")[-2] for row in self.kernels]

    def tensor(self, which: Literal["A", "B"], *layer: int) -> str:
        """Returns the name of an adapter's tensor, of one layer or as a template."""
        name = f"base_model.model.{self.kernels[0].hf_name.removesuffix('.weight')}.lora_{which}"
        return f"{name.format(i=layer[0]) if layer else name}.weight"


def _modules(hf_config: Mapping[str, Any], config: ModelConfig) -> list[_Module]:
    kernels: dict[tuple[str, ...], list[Row]] = {}
    for row in family_of(hf_config).rows(config):
        if row.leading == 1 and row.path.endswith("/kernel"):
            kernels.setdefault(tuple(row.hf_name.split(".")[:-1]), []).append(row)
    last = [path[-1] for path in kernels]
    # GPT-2 has a c_proj in the attention and another in the MLP.
    return [
        _Module(path[-1] if last.count(path[-1]) == 1 else ".".join(path[-2:]), rows)
        for path, rows in kernels.items()
    ]


def _rows(modules: Sequence[_Module], rank: int | None) -> list[Row]:
    """Returns the table of adapters: `lora_A` is `[r, in]` and `lora_B` `[out, r]`.

    Args:
      modules: What may be adapted.
      rank: Of each of our adapters, where the maps of one tensor have their own; None where they
        share one.
    """
    rows = []
    for module in modules:
        for place, kernel in enumerate(module.kernels):
            ranks = None
            if rank is not None and len(module.kernels) > 1:
                ranks = Span(place * rank, rank, len(module.kernels) * rank)
            path = kernel.path.removesuffix("/kernel")
            rows.append(Row(f"{path}/a", module.tensor("A"), transposed=True, columns=ranks))
            rows.append(Row(f"{path}/b", module.tensor("B"), True, kernel.columns, rows=ranks))
    return rows


def _patterns(modules: Sequence[_Module], rank: int, alpha: float) -> dict[str, dict[str, Any]]:
    """Returns the patterns of modules that hold several maps; alpha / rank stays the same."""
    several = {module.name: len(module.kernels) for module in modules if len(module.kernels) > 1}
    return {
        "rank_pattern": {name: count * rank for name, count in several.items()},
        "alpha_pattern": {name: count * alpha for name, count in several.items()},
    }
