"""`python -m jaxdpo.convert source=… target=…`: models, runs and checkpoints, in other formats."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxdpo.command import run_command
from jaxdpo.console import Reporter
from jaxdpo.errors import UserError, nearest
from jaxdpo.hub.adapter import load_adapter
from jaxdpo.hub.export import exporting
from jaxdpo.hub.policy import Policy
from jaxdpo.hub.read import load_params
from jaxdpo.hub.write import write_json
from jaxdpo.models import ORBAX, load_source
from jaxdpo.sharding import path_name

USAGE = """usage: python -m jaxdpo.convert source=PATH target=FOLDER [field=value …] [--check]

Writes a model folder from a model folder, a PEFT adapter folder, org/name on the Hub, a run folder,
one of a run's checkpoints, or a folder that this command wrote with format=orbax.
--check reads what was written and compares every tensor.
"""


class ConvertConfig(BaseModel):
    """What is converted, and to what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="model, adapter, run, checkpoint, or org/name on the Hub")
    target: str = Field(description="folder to write")
    format: Literal["huggingface", "orbax"] = Field(
        default="huggingface", description="of the target"
    )
    lora: Literal["merged", "adapter"] = Field(
        default="merged", description="adapters added into the weights, or a PEFT adapter folder"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="dtype of the weights; default: float32, or as a run has them"
    )
    shard_gb: float = Field(default=5.0, gt=0, description="most gigabytes of one file of weights")


def main(arguments: list[str]) -> None:
    """Converts as the arguments say; `--help` shows every field."""
    if not arguments or {"-h", "--help"} & set(arguments):
        fields = ConvertConfig.model_fields.items()
        shown = (
            f"  {name}={f.default if not f.is_required() else '…'}\n      {f.description}"
            for name, f in fields
        )
        print(USAGE + "\n" + "\n".join(shown))
        return
    check = "--check" in arguments
    config = parse([argument for argument in arguments if argument != "--check"])
    convert(config, check)


def parse(arguments: Sequence[str]) -> ConvertConfig:
    """The configuration that `field=value` arguments give.

    Raises:
      UserError: For an unknown field, or a value that a field can't have.
    """
    values = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r}: an argument has the form field=value")
        if name not in ConvertConfig.model_fields:
            known = list(ConvertConfig.model_fields)
            raise UserError(
                f"{name}: unknown field{nearest(name, known)}; there are {', '.join(known)}"
            )
        values[name] = value
    try:
        return ConvertConfig.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{problem['loc'][0]}: {problem['msg']}") from None


def convert(config: ConvertConfig, check: bool = False) -> None:
    """Reads the source, writes the target, and with `check` compares them.

    Raises:
      UserError: For what cannot be read, written, or expressed in the format asked for.
    """
    reporter = Reporter(quiet=False)
    reporter.say(f"reading {config.source}")
    policy = load_source(config.source)
    if config.lora == "adapter" and policy.lora is None:
        raise UserError(f"{config.source}: has no adapters; leave lora=adapter out")
    if config.lora == "adapter" and (config.format == "orbax" or config.dtype is not None):
        raise UserError(
            "lora=adapter: adapters are written as PEFT keeps them, in float32; leave format and "
            "dtype out"
        )
    target = Path(config.target).expanduser()
    reporter.say(f"writing {target}")
    if config.format == "orbax":
        policy = policy.merged()
        _write_orbax(policy, target, config.dtype)
    else:
        policy.save(target, config.lora, config.dtype, int(config.shard_gb * 1e9))
    if check:
        count = _check(policy, config, target)
        reporter.say(f"checked: {count} arrays read back equal")


def _write_orbax(policy: Policy, target: Path, dtype: str | None) -> None:
    params = policy.params
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    name = jax.tree.leaves(params)[0].dtype.name
    with exporting(target) as temporary:
        write_json(temporary / "config.json", {**policy.hf_config, "dtype": name})
        write_json(temporary / "generation_config.json", policy.generation_config or {})
        policy.chat.tokenizer.save_pretrained(temporary)
        ocp.save(str((temporary / ORBAX).absolute()), params)


def _check(policy: Policy, config: ConvertConfig, target: Path) -> int:
    """Compares every array with what was written; returns how many."""
    expected: Any = policy.merged().params
    if config.format == "orbax":
        found: Any = load_source(str(target)).params
    elif config.lora == "adapter":
        expected = policy.lora
        found, _ = load_adapter(target, policy.config, policy.hf_config)
    else:
        dtype = jax.tree.leaves(expected)[0].dtype
        found = load_params(target, policy.config, jnp.dtype(config.dtype or dtype))
    pairs = zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True)
    for (path, wanted), leaf in pairs:
        if not np.array_equal(np.asarray(wanted.astype(leaf.dtype)), np.asarray(leaf)):
            raise UserError(f"{target}: {path_name(path)} reads back differently")
    return len(jax.tree.leaves(expected))


if __name__ == "__main__":
    sys.exit(run_command(main))
