"""A model from wherever it lies: a folder, an adapter, the Hub, a run, or a checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdpo.config import RunConfig, load_config
from jaxdpo.data.tokenization.chat import Chat, load_chat, read_template
from jaxdpo.errors import UserError
from jaxdpo.hub.adapter_config import ADAPTER_CONFIG
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.find import find_folder
from jaxdpo.hub.folder import member, read_config, read_json
from jaxdpo.hub.gguf.file import is_gguf
from jaxdpo.hub.gguf.read import open_gguf
from jaxdpo.hub.policy import Policy, open_policy
from jaxdpo.hub.read import on_devices
from jaxdpo.model.decoder import abstract_params
from jaxdpo.model.lora import init_lora
from jaxdpo.runs.base import base_chat, base_files, check_base, find_base, has_base
from jaxdpo.runs.card import run_card
from jaxdpo.runs.folder import RunFolder
from jaxdpo.storage.buckets import fetch, is_bucket
from jaxdpo.storage.orbax import stored_arrays
from jaxdpo.storage.urls import refuse_url
from jaxdpo.training.checkpoint import (
    MODEL_FOLDER,
    is_checkpoint,
    newest_checkpoint,
    read_manifest,
    stored_trainable,
)

# The parameters in a folder written with format=orbax, beside config.json and the tokenizer.
ORBAX = "params"
CARD = "README.md"


def load_source(source: str, chat_template: str | None = None) -> Policy:
    """Loads the model of anything that `open_source` opens, onto the first device."""
    policy = open_source(source, chat_template)
    lora = None if policy.lora is None else on_devices(policy.lora, None)
    return replace(policy, params=on_devices(policy.params, None), lora=lora)


def open_source(source: str, chat_template: str | None = None, exact: bool = False) -> Policy:
    """Opens a model wherever it lies, its weights left in their files.

    A source is a folder, an adapter folder, `org/name`, `@smollm2`, a run (its newest checkpoint),
    one checkpoint with or without its run beside it, a folder that `convert` wrote in Orbax format,
    or a GGUF file of the llama architecture.

    Args:
      source: Where it lies.
      chat_template: Jinja file used in place of the tokenizer's own template, or the run's.
      exact: Whether parameters that a run trained are opened in the float32 that it keeps them in,
        rather than in the dtype that it computes with.

    Raises:
      UserError: If it is none of these, or cannot be loaded.
    """
    if is_bucket(source):
        source = str(fetch(source))
    refuse_url(source)
    path = find_folder(source) if source.startswith("@") else Path(source).expanduser()
    if is_gguf(path):
        return _open_gguf(path, chat_template)
    # A checkpoint within its run is opened with what the run folder keeps beside it.
    for run in (path, path.parent.parent):
        if (run / "config.yaml").exists() and (run / "checkpoints").is_dir():
            checkpoint = newest_checkpoint(run / "checkpoints") if run == path else path
            return _open_run(run, checkpoint, chat_template, exact)
    if is_checkpoint(path):
        return _open_checkpoint(path, chat_template, exact)
    card = None
    # A converted model goes on with the card that it came with.
    if (path / CARD).exists():
        card = member(path, CARD).read_text(encoding="utf-8")
    if (path / ORBAX).is_dir():
        hf_config = read_config(path)
        config = config_from_hf(hf_config)
        params = stored_arrays(path / ORBAX, abstract_params(config, jnp.dtype(hf_config["dtype"])))
        generation = read_json(path, "generation_config.json")
        chat = load_chat(str(path), chat_template)
        return Policy(config, params, chat, source, hf_config, generation or None, card=card)
    return replace(open_policy(source, chat_template=chat_template), card=card)


def _open_gguf(path: Path, chat_template: str | None) -> Policy:
    """Opens the model of a GGUF file; nothing on disk can be an adapter's base."""
    model = open_gguf(path)
    if chat_template is not None:
        model.tokenizer.chat_template = read_template(chat_template)
    ends = model.hf_config.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    chat = Chat(model.tokenizer, end_ids=ends)
    return Policy(
        model.config,
        model.params,
        chat,
        str(path),
        model.hf_config,
        model.generation_config,
        card=model.card(),
        on_disk=False,
    )


def _open_run(folder: Path, checkpoint: Path, chat_template: str | None, exact: bool) -> Policy:
    """Opens a checkpoint of a run, from any directory.

    Where all parameters trained, the checkpoint and the run folder hold everything; adapters need
    the weights of their base model, too.
    """
    run, manifest = load_config(folder / "config.yaml"), read_manifest(checkpoint)
    step = manifest["step"]
    # An earlier version's checkpoint does not say it.
    dtype = manifest.get("run", {}).get("export", {}).get("dtype")
    trained_dtype = jnp.dtype("float32" if exact else run.model.param_dtype)
    if run.lora is None and has_base(folder):
        hf_config, generation = base_files(folder)
        config = config_from_hf(hf_config, run.data.max_length)
        params = stored_trainable(checkpoint, abstract_params(config, trained_dtype))
        chat = base_chat(folder, chat_template)
        card = run_card(run, folder, step)
        opened = Policy(config, params, chat, run.model.path, hf_config, generation, card=card)
        return replace(opened, file_dtype=dtype)
    try:
        found = find_base(folder, run.model.path)
    except UserError:
        # A finished run has the adapters' sum with their base, which needs no base any more.
        whole = folder / "model"
        newest = checkpoint == newest_checkpoint(folder / "checkpoints")
        if newest and (folder / "summary.json").exists() and not (whole / ADAPTER_CONFIG).exists():
            return open_source(str(whole), chat_template)
        raise
    # The run's own template is a file that may have stayed behind; the run folder keeps a copy.
    template = chat_template if has_base(folder) else chat_template or run.data.chat_template
    base = open_policy(found, run.model.param_dtype, template, run.data.max_length, run.model.base)
    # A continued adapter stands beside the base; any other is beneath what was trained.
    continued = run.model.adapter == "continue"
    policy, lora_config = replace(base, lora=None) if continued else base.merged(), run.lora
    if lora_config is None:
        # A run folder of an earlier version, which keeps nothing of its base.
        expected = abstract_params(base.config, trained_dtype)
        policy = replace(policy, params=stored_trainable(checkpoint, expected))
    else:
        # Adapters learned to correct the quantized numbers, so those are beneath them again.
        policy = policy.quantized(lora_config.base)
        if base.lora is None:
            # With an adapter merged into it on devices, not to the bit the same as in files.
            start = RunFolder(folder, writes=False).start_digest()
            check_base(folder, found, policy, start)
        expected = jax.eval_shape(lambda: init_lora(base.config, lora_config, jax.random.key(0)))
        lora = stored_trainable(checkpoint, expected)
        policy = replace(policy, lora=lora, lora_config=lora_config)
    if has_base(folder) and chat_template is None and run.data.chat_template is not None:
        policy = replace(policy, chat=base_chat(folder, None))
    card = run_card(run, folder, step)
    return replace(policy, card=card, file_dtype=dtype or policy.file_dtype)


def _open_checkpoint(folder: Path, chat_template: str | None, exact: bool) -> Policy:
    """Opens a checkpoint that lies by itself, by its own description."""
    manifest = read_manifest(folder)
    if "run" not in manifest:
        raise UserError(
            f"{folder}: an earlier version wrote it, which kept the configuration in the run's "
            "folder alone; move it back into checkpoints/ there"
        )
    run = RunConfig.model_validate(manifest["run"])
    if run.lora is None:
        dtype = jnp.dtype("float32" if exact else run.model.param_dtype)
        policy = _trained_parameters(folder, manifest["model"], run, dtype, chat_template)
    else:
        policy = _on_its_base(folder, manifest, run, chat_template)
    card = run_card(run, None, manifest["step"])
    return replace(policy, card=card, file_dtype=run.export.dtype or policy.file_dtype)


def _trained_parameters(
    folder: Path,
    hf_config: dict[str, Any],
    run: RunConfig,
    dtype: Any,
    chat_template: str | None,
) -> Policy:
    """Opens all parameters of a model, which need nothing but the checkpoint itself."""
    files = folder / MODEL_FOLDER
    config = config_from_hf(hf_config, run.data.max_length)
    params = stored_trainable(folder, abstract_params(config, dtype))
    # The run's template was saved with the tokenizer.
    chat = load_chat(str(files), chat_template)
    generation = read_json(files, "generation_config.json") or None
    return Policy(config, params, chat, run.model.path, hf_config, generation)


def _on_its_base(
    folder: Path, manifest: dict[str, Any], run: RunConfig, chat_template: str | None
) -> Policy:
    """Opens adapters on the base model that they were trained on."""
    try:
        base = open_policy(
            run.model.path,
            run.model.param_dtype,
            chat_template,
            run.data.max_length,
            run.model.base,
        )
    except UserError as error:
        raise UserError(
            f"{folder}: needs the model that it was trained from, model.path={run.model.path}: "
            f"{error}"
        ) from None
    base = replace(base, hf_config=manifest["model"])
    if chat_template is None:
        # The run's template was saved with the tokenizer.
        base = replace(base, chat=load_chat(str(folder / MODEL_FOLDER)))
    continued = run.model.adapter == "continue"
    policy, lora_config = replace(base, lora=None) if continued else base.merged(), run.lora
    assert lora_config is not None
    policy = policy.quantized(lora_config.base)
    if base.lora is None:
        check_base(folder, run.model.path, policy, manifest.get("start"))
    expected = jax.eval_shape(lambda: init_lora(base.config, lora_config, jax.random.key(0)))
    lora = stored_trainable(folder, expected)
    return replace(policy, lora=lora, lora_config=lora_config)
