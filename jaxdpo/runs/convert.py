"""Converts models, runs and checkpoints from one format to another, a tensor at a time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from jaxdpo.cli.console import Reporter
from jaxdpo.devices.sharding import path_name
from jaxdpo.errors import UserError
from jaxdpo.hub.adapter import lazy_adapter
from jaxdpo.hub.export import damaged_files, exporting
from jaxdpo.hub.gguf.read import open_gguf
from jaxdpo.hub.gguf.write import GgufSource, Numbers, as_written, write_gguf
from jaxdpo.hub.policy import Policy
from jaxdpo.hub.read import lazy_params
from jaxdpo.hub.tokenizer_files import write_tokenizer
from jaxdpo.hub.write import write_json, write_texts
from jaxdpo.model.decoder import Params
from jaxdpo.model.quantized import is_quantized
from jaxdpo.runs.card import card_of_form
from jaxdpo.runs.load import CARD, ORBAX, open_source
from jaxdpo.storage.buckets import fetch, is_bucket, usable
from jaxdpo.storage.files import refuse_existing, shipped
from jaxdpo.storage.lazy_array import matrices
from jaxdpo.storage.orbax import write_arrays
from jaxdpo.storage.urls import refuse_url

# The numbers that llama.cpp's own converter writes by default.
_GGUF_DTYPE: Numbers = "float16"


class ConvertConfig(BaseModel):
    """The source of a conversion, its target, and the format of the target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Annotated[str, AfterValidator(usable), AfterValidator(shipped)] = Field(
        description="model, adapter, run or checkpoint, here or in a bucket, or org/name on the "
        "Hub",
        json_schema_extra={"bucket": True},
    )
    target: Annotated[str, AfterValidator(usable)] = Field(
        description="folder to write, here or in a bucket; with format=gguf, a file here",
        json_schema_extra={"bucket": True},
    )
    format: Literal["huggingface", "orbax", "gguf"] = Field(
        default="huggingface", description="of the target; gguf is for llama.cpp and ollama"
    )
    lora: Literal["merged", "adapter"] = Field(
        default="merged", description="adapters added into the weights, or a PEFT adapter folder"
    )
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] | None = Field(
        default=None,
        description="dtype of the weights, q8_0 for gguf alone; default: that of the source's "
        "files, or a run's export; float16 for gguf",
    )
    shard_gb: float = Field(default=5.0, gt=0, description="most gigabytes of one file of weights")
    overwrite: bool = Field(default=False, description="replace the model of a run, or a GGUF file")
    check: bool = Field(
        default=False,
        description="compare the source with the manifest of its export, if it has one; read what "
        "was written, and compare every tensor with the source",
    )


def convert(config: ConvertConfig) -> None:
    """Reads the source and writes the target, a tensor at a time.

    Raises:
      UserError: For what cannot be read, written, or expressed in the format asked for.
    """
    reporter = Reporter()
    reporter.say(f"reading {config.source}")
    if config.check:
        _check_source(config.source)
    policy = open_source(config.source, exact=True)
    _check_possible(config, policy)
    if policy.lora is not None and policy.card is not None:
        policy = replace(policy, card=card_of_form(policy.card, config.lora == "adapter"))
    if config.lora == "merged":
        # Wider than the files are, a model takes twice the space and holds nothing more.
        dtype = config.dtype or policy.file_dtype or jax.tree.leaves(policy.params)[0].dtype.name
        config = config.model_copy(update={"dtype": dtype})
        policy = _wide(policy, dtype).merged()
    target = Path(config.target).expanduser()
    _check_target(config, target)
    written = policy.lora if config.lora == "adapter" else policy.params
    # The bar counts bytes read, since adapters are merged and dtypes changed on the way.
    size = sum(stored.nbytes for stored in jax.tree.leaves(written))
    with reporter.transfer(f"writing {config.target}", size) as seen:
        shown = _watched(policy, seen)
        if config.format == "orbax":
            _write_orbax(shown, target, config.dtype)
        elif config.format == "gguf":
            write_gguf(target, _gguf_source(shown), config.dtype or _GGUF_DTYPE)
        else:
            shown.save(target, config.lora, config.dtype, int(config.shard_gb * 1e9))
    if config.check:
        with reporter.transfer(f"checking {config.target}", size) as seen:
            count = _check(_watched(policy, seen), config, target)
        reporter.say(f"checked: {count} arrays read back equal")


def _check_source(source: str) -> None:
    """Refuses an exported folder that is not as it was exported.

    Raises:
      UserError: Naming its files that differ.
    """
    folder = Path(source).expanduser()
    # A run's export lies within it.
    for place in (folder, folder / "model"):
        if place.is_dir() and (damaged := damaged_files(place)):
            raise UserError(
                f"{place}: {', '.join(damaged)} differ from what was exported; export or copy the "
                "folder again, or leave --check out if somebody changed them on purpose"
            )


def _wide(policy: Policy, dtype: str) -> Policy:
    """Returns a policy whose adapters can be merged without rounding, if fp32 is written."""
    if dtype != "float32" or policy.lora is None:
        return policy

    def cast(leaf: Any) -> Any:
        return leaf if is_quantized(leaf) else leaf.cast(jnp.dtype(dtype))

    params = jax.tree.map(cast, policy.params, is_leaf=is_quantized)
    return replace(policy, params=params)


def _check_possible(config: ConvertConfig, policy: Policy) -> None:
    """Refuses settings that do not belong together, or do not fit the source."""
    if config.lora == "adapter" and policy.lora is None:
        raise UserError(f"{config.source}: has no adapters; leave lora=adapter out")
    if config.lora == "adapter" and (config.format != "huggingface" or config.dtype is not None):
        raise UserError(
            "lora=adapter: adapters are written as PEFT keeps them, in float32; leave format and "
            "dtype out"
        )
    if config.dtype == "q8_0" and config.format != "gguf":
        raise UserError("dtype=q8_0: only GGUF files hold such numbers; set format=gguf")


def _check_target(config: ConvertConfig, target: Path) -> None:
    """Refuses a target that holds something which is not to be replaced."""
    if config.format == "gguf":
        # A GGUF file is written in place, a tensor at a time.
        refuse_url(target, "target")
        if not config.overwrite:
            refuse_existing(target)
        elif target.is_dir():
            raise UserError(f"{target}: is a folder; with format=gguf, name a file")
        return
    if target.suffix == ".gguf":
        raise UserError(f"target={target}: to write a GGUF file, set format=gguf")
    run = target.absolute().parent
    if (run / "config.yaml").exists() and (run / "checkpoints").is_dir() and not config.overwrite:
        raise UserError(
            f"{target}: belongs to the run in {run}, whose summary is of the model there; name "
            "another folder, or set overwrite=true"
        )


def _gguf_source(policy: Policy) -> GgufSource:
    # A folder's name without its place, which is nobody else's business.
    name = Path(policy.source).name
    chat = policy.chat
    return GgufSource(
        policy.config, policy.params, chat.tokenizer, chat.end_ids, policy.hf_config, name
    )


def _watched(policy: Policy, seen: Callable[[int], None]) -> Policy:
    """Returns the policy with `seen` called with the bytes that are read of it."""

    def watched(arrays: Params) -> Params:
        return jax.tree.map(lambda stored: stored.watched(seen), arrays)

    lora = None if policy.lora is None else watched(policy.lora)
    return replace(policy, params=watched(policy.params), lora=lora)


def _write_orbax(policy: Policy, target: Path, dtype: str | None) -> None:
    params = jax.tree.map(lambda stored: stored.cast(jnp.dtype(dtype)), policy.params)
    with exporting(target) as temporary:
        write_json(temporary / "config.json", {**policy.hf_config, "dtype": dtype})
        write_json(temporary / "generation_config.json", policy.generation())
        write_tokenizer(temporary, policy.chat.tokenizer)
        if policy.card is not None:
            write_texts(temporary, {CARD: policy.card})
        write_arrays(temporary / ORBAX, params)


def _check(policy: Policy, config: ConvertConfig, target: Path) -> int:
    """Compares every array with what was written; returns how many."""
    if is_bucket(target):
        # A fresh copy, and not what was sent.
        target = fetch(target)
    expected: Any = policy.params
    if config.format == "orbax":
        found: Any = open_source(str(target)).params
    elif config.format == "gguf":
        found = open_gguf(target).params
    elif config.lora == "adapter":
        expected, _ = policy.whole_adapter()
        found, _ = lazy_adapter(target, policy.config, policy.hf_config)
    else:
        found = lazy_params(target, policy.config, jnp.dtype(config.dtype))
    written = {path_name(path): stored for path, stored in jax.tree.leaves_with_path(found)}
    arrays = jax.tree.leaves_with_path(expected)
    # Bits and not values: NaN is unequal to itself, and −0 is equal to 0.
    for path, wanted in arrays:
        stored = written[path_name(path)]
        wanted = wanted.cast(stored.dtype)
        for indices in np.ndindex(matrices(wanted.shape)):
            part = wanted.at(indices)
            if config.format == "gguf":
                part = _in_gguf(path_name(path), part, config.dtype or _GGUF_DTYPE)
            if part.tobytes() != stored.at(indices).tobytes():
                raise UserError(f"{target}: {path_name(path)} reads back differently")
    return len(arrays)


def _in_gguf(path: str, array: np.ndarray, numbers: Numbers) -> np.ndarray:
    """Returns the numbers of a parameter that a GGUF file holds, in fp32.

    Args:
      path: Path of the parameter.
      array: One layer's.
      numbers: Numbers that matrices are written in.
    """
    if path == "embed/weight":
        return as_written(array, numbers)
    if not path.endswith("kernel"):
        return array
    # Kernels are `[in, out]` here and `[out, in]` there, and blocks of numbers lie along `in`.
    return np.ascontiguousarray(as_written(array.T, numbers).T)
