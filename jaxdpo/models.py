"""A model from wherever it lies: a folder, an adapter, the Hub, a run, or a checkpoint."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
from orbax.checkpoint import v1 as ocp

from jaxdpo.config import RunConfig, load_config
from jaxdpo.data.chat import load_chat
from jaxdpo.errors import UserError
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.folder import read_config
from jaxdpo.hub.policy import Policy, load_policy
from jaxdpo.model.decoder import abstract_params
from jaxdpo.model.lora import init_lora
from jaxdpo.sharding import AXES, shardings_for
from jaxdpo.training.checkpoint import load_checkpoint
from jaxdpo.training.optimizer import make_optimizer, make_schedule
from jaxdpo.training.step import init_state

# The parameters in a folder written with format=orbax, beside config.json and the tokenizer.
ORBAX = "params"


def load_source(source: str, chat_template: str | None = None) -> Policy:
    """The model of a folder, an adapter folder, `org/name`, a run (its newest checkpoint), one
    checkpoint, or a folder written by `convert` with format=orbax.

    Args:
      source: Where it lies.
      chat_template: Jinja file used in place of the tokenizer's own template, or the run's.

    Raises:
      UserError: If it is none of these, or cannot be loaded.
    """
    path = Path(source).expanduser()
    for run in (path, path.parent.parent):
        if (run / "config.yaml").exists() and (run / "checkpoints").is_dir():
            checkpoint = run / "checkpoints" if run == path else path
            return _load_run(load_config(run / "config.yaml"), checkpoint, chat_template)
    if (path / ORBAX).is_dir():
        hf_config = read_config(path)
        config = config_from_hf(hf_config)
        dtype = jnp.dtype(hf_config["dtype"])
        params = ocp.load(str((path / ORBAX).absolute()), _placed(abstract_params(config, dtype)))
        generation = json.loads((path / "generation_config.json").read_text())
        chat = load_chat(str(path), chat_template)
        return Policy(config, params, chat, source, hf_config, generation or None)
    return load_policy(source, chat_template=chat_template)


def _load_run(run: RunConfig, checkpoint: Path, chat_template: str | None) -> Policy:
    base = load_policy(
        run.model.path,
        run.model.param_dtype,
        chat_template=chat_template or run.data.chat_template,
        context=run.data.max_length,
    )
    policy, lora_config = base.merged(), run.lora
    trainable = policy.params
    if lora_config is not None:
        model = policy.config
        trainable = jax.eval_shape(lambda: init_lora(model, lora_config, jax.random.key(0)))
    # The schedule is no part of the state.
    optimizer = make_optimizer(
        run.optimizer, make_schedule(run.optimizer, 1, lora_config is not None)
    )
    mesh = _first_device()
    reference = policy.params if run.reference_kind == "moving" else None
    abstract = jax.eval_shape(
        lambda tree, moved: init_state(tree, optimizer, mesh, moved), trainable, reference
    )
    trained = load_checkpoint(checkpoint, _placed(abstract)).trainable
    if lora_config is None:
        return replace(policy, params=trained)
    if base.lora is not None:
        raise UserError(
            f"{checkpoint}: was trained on top of the adapter {run.model.path}; take the model/ "
            "that the run exports"
        )
    return replace(policy, lora=trained, lora_config=lora_config)


def _first_device() -> Mesh:
    sizes, types = (1,) * len(AXES), (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=types, devices=jax.local_devices()[:1])


def _placed(abstract: Any) -> Any:
    """The same shapes, on the first device."""
    mesh = _first_device()
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        shardings_for(abstract, mesh),
    )
