"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxdpo.errors import UserError
from jaxdpo.hub.export import exporting, write_tensors
from jaxdpo.hub.families import Row, family_of
from jaxdpo.hub.folder import read_json
from jaxdpo.hub.read import open_tensors, read_tree
from jaxdpo.hub.write import tensor_arrays, tensor_specs, write_json
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.lora import LoraConfig, LoraParams, init_lora
from jaxdpo.sharding import shardings_for

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Fields of PEFT's config whose other values make another adapter than `x @ a @ b · alpha / r`.
_ONLY: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "use_qalora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
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

    Raises:
      UserError: If the folder cannot be written.
    """
    rows = adapter_rows(hf_config, config)
    specs, arrays = tensor_specs(rows, lora), tensor_arrays(rows, lora)
    if jax.process_index() != 0:
        for _ in arrays:  # Takes part in gathering what no process holds whole.
            pass
        return
    modules = sorted({name.split(".")[-3] for name in specs})
    described = {
        **_ONLY,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora_config.rank,
        "lora_alpha": lora_config.alpha,
        "lora_dropout": lora_config.dropout,
        "target_modules": modules,
        "inference_mode": True,
    }
    with exporting(Path(folder).expanduser()) as temporary:
        write_json(temporary / ADAPTER_CONFIG, described)
        write_tensors(temporary / ADAPTER_WEIGHTS, specs, arrays)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)


def base_of(folder: Path) -> str:
    """The model that an adapter folder says it belongs to.

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
    described = read_json(folder, ADAPTER_CONFIG)
    for field, only in _ONLY.items():
        if (described.get(field) or None) != (only or None):
            raise UserError(
                f"{folder / ADAPTER_CONFIG}: {field} {described.get(field)!r} is not supported, "
                f"only {only!r}"
            )
    rows = adapter_rows(hf_config, config)
    with open_tensors(folder, ADAPTER_WEIGHTS) as tensors:
        targets = sorted({row.ours.split("/")[-2] for row in rows if row.name(0) in tensors})
        if not targets:
            raise UserError(f"{folder / ADAPTER_WEIGHTS}: adapts no linear map of the model")
        lora_config = LoraConfig(
            rank=described["r"],
            alpha=described["lora_alpha"],
            targets=tuple(targets),
            dropout=described.get("lora_dropout", 0.0),
        )
        expected = jax.eval_shape(lambda: init_lora(config, lora_config, jax.random.key(0)))
        shardings = None if mesh is None else shardings_for(expected, mesh)
        return read_tree(folder, tensors, rows, expected, shardings), lora_config


def adapter_rows(hf_config: Mapping[str, Any], config: ModelConfig) -> Sequence[Row]:
    """The family's table for adapters: `lora_A` is `[r, in]` and `lora_B` `[out, r]`.

    Raises:
      UserError: If the family stores several linear maps in one tensor, which PEFT adapts as one.
    """
    rows, family = [], family_of(hf_config)
    for row in family.rows(config):
        if row.leading != 1 or not row.ours.endswith("/kernel"):
            continue
        if row.span is not None or not row.transposed:
            raise UserError(
                f"{family.model_type} stores {row.ours.split('/')[-2]} in {row.theirs} in a way "
                "that a PEFT adapter of it would not fit; set export.lora=merged"
            )
        ours = row.ours.removesuffix("/kernel")
        theirs = f"base_model.model.{row.theirs.removesuffix('.weight')}"
        rows.append(Row(f"{ours}/a", f"{theirs}.lora_A.weight", transposed=True))
        rows.append(Row(f"{ours}/b", f"{theirs}.lora_B.weight", transposed=True))
    return rows
