"""A policy: a decoder with its weights, its adapters if any, and its tokenizer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdpo.data.tokenization.chat import Chat, load_chat
from jaxdpo.devices.sharding import path_name, shardings_for
from jaxdpo.errors import UserError
from jaxdpo.hub.adapter import Adapter, open_adapter
from jaxdpo.hub.adapter_config import ADAPTER_CONFIG, BaseName
from jaxdpo.hub.adapter_pairs import stacked
from jaxdpo.hub.adapter_write import AdapterBase, save_adapter
from jaxdpo.hub.carried import Carried
from jaxdpo.hub.families import family_of, wrapper_of
from jaxdpo.hub.find import find_folder
from jaxdpo.hub.folder import check_files, member, read_json
from jaxdpo.hub.merging import merge_adapters
from jaxdpo.hub.opened_model import base_folder, open_carried, open_model, with_replaced
from jaxdpo.hub.quantized import dequantize_params, kind_of, quantize_params
from jaxdpo.hub.read import lazy_params, on_devices, usual_dtype
from jaxdpo.hub.write import MAX_SHARD_BYTES, ModelFiles, json_text, write_model
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params
from jaxdpo.model.lora import LoraConfig, LoraParams
from jaxdpo.model.quantized import BaseKind, is_quantized


@dataclass(frozen=True)
class Policy:
    """A model that answers messages.

    Attributes:
      config: Architecture.
      params: Parameters; `Stored` ones of a policy that was opened and not loaded.
      chat: Tokenizer and chat template.
      source: The folder or `org/name` it was loaded from.
      hf_config: Its config.json.
      generation_config: Its generation_config.json, or None.
      lora: Adapters, or None.
      lora_config: Their scale, or None.
      card: Its model card, which is saved with it, or None.
      saved: Paths of parameters that an adapter folder holds whole, in place of those at `source`.
      on_disk: Whether the parameters, but for `saved`, are those at `source`, so that an adapter
        can name it as its base.
      beneath: Adapters that were merged into the parameters at `source`, and their scale, or None.
        A new adapter is saved together with them.
      file_dtype: The dtype that most weights have in the files at `source`; None if it was not read
        from any.
      revision: Branch, tag or commit of `source` on the Hub, where an adapter names one.
    """

    config: ModelConfig
    params: Params
    chat: Chat
    source: str
    hf_config: Mapping[str, Any]
    generation_config: Mapping[str, Any] | None = None
    lora: LoraParams | None = None
    lora_config: LoraConfig | None = None
    card: str | None = None
    saved: tuple[str, ...] = ()
    on_disk: bool = True
    beneath: tuple[LoraParams, LoraConfig] | None = None
    file_dtype: str | None = None
    revision: str | None = None

    def __repr__(self) -> str:
        # The parameters alone would be pages.
        return f"Policy({self.describe()})"

    def describe(self) -> str:
        """Returns a line such as `models/tiny: llama, 1.2M parameters, float32`."""
        leaves = jax.tree.leaves(self.params, is_leaf=is_quantized)
        count = sum(leaf.size for leaf in leaves)
        size = f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
        dtype = self.params["embed"]["weight"].dtype.name
        kind = "" if self.base == "full" else f", layers in {self.base}"
        return f"{self.source}: {self.hf_config['model_type']}, {size} parameters, {dtype}{kind}"

    @property
    def base(self) -> BaseKind:
        """Number format of the layers' matrices."""
        return kind_of(self.params)

    def quantized(self, kind: BaseKind) -> "Policy":
        """Returns the same model with its layers' matrices in fewer bits, beneath adapters to come.

        Raises:
          UserError: If they are quantized otherwise already, or their sizes do not allow it.
        """
        if self.base == kind:
            return self
        if self.base != "full":
            raise UserError(f"the policy's layers are in {self.base}; set lora.base={self.base}")
        return replace(self, params=quantize_params(self.params, kind))

    def merged(self) -> "Policy":
        """Returns the same model with its adapters added into the weights.

        A quantized base is dequantized first, to the numbers that the adapters were trained on. The
        sums are not all formed at once: such a policy can be saved, and put on devices.
        """
        if self.lora is None:
            return self
        assert self.lora_config is not None
        params = merge_adapters(self.params, self.lora, self.lora_config.scale)
        # What an adapter merged from the base on disk added can be taken along by the next one.
        beneath = (self.lora, self.lora_config) if self.on_disk else None
        return replace(
            self, params=params, lora=None, lora_config=None, on_disk=False, beneath=beneath
        )

    def save(
        self,
        folder: str | Path,
        lora: Literal["merged", "adapter"] = "merged",
        dtype: str | None = None,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        """Writes a Hugging Face folder: the whole model, or the adapters alone for `peft`.

        Args:
          folder: Where to; it appears when it is complete.
          lora: What is done with adapters, if there are any.
          dtype: Of the weights; None to keep it.
          max_shard_bytes: Most bytes of weights in one file.

        Raises:
          UserError: If the folder cannot be written.
        """
        tokenizer = self.chat.tokenizer
        card = {} if self.card is None else {"README.md": self.card}
        if self.lora is not None and lora == "adapter":
            adapters, lora_config = self.whole_adapter()
            save_adapter(folder, adapters, lora_config, self.adapter_base(), tokenizer, card)
            return
        files = {**card, "generation_config.json": json_text(self.generation())}
        params = dequantize_params(self.merged().params)
        model = ModelFiles(self.config, params, tokenizer, self.hf_config, files, self.carried())
        written = None if dtype is None else jnp.dtype(dtype)
        write_model(folder, model, written, max_shard_bytes)

    def carried(self) -> Carried | None:
        """Opens what an export carries along for images; None of a text model.

        Raises:
          UserError: If it is gone from `source`.
        """
        return open_carried(self.source, self.revision, self.hf_config)

    def generation(self) -> dict[str, Any]:
        """Returns the generation_config.json to save, with every token that ends an answer.

        A model that learnt to end with a token that is not listed there goes on until the length
        limit in transformers and vLLM.
        """
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        named = {
            name: self.hf_config[name] for name in names if self.hf_config.get(name) is not None
        }
        written = {**named, **(self.generation_config or {})}
        ends: list[int] = []
        for each in (written.get("eos_token_id"), named.get("eos_token_id")):
            ends += each if isinstance(each, list) else [] if each is None else [each]
        # The model's own first, in their order: some readers take the first one alone.
        ends = list(dict.fromkeys([*ends, *self.chat.end_ids]))
        return {**written, "eos_token_id": ends[0] if len(ends) == 1 else ends}

    def whole_adapter(self) -> tuple[LoraParams, LoraConfig]:
        """Returns all that the adapters add to the model at `source`, as one adapter."""
        assert self.lora is not None and self.lora_config is not None
        own = (self.lora, self.lora_config)
        return own if self.beneath is None else stacked(self.beneath, own)

    def adapter_base(self) -> AdapterBase:
        """Returns the model that this policy's adapter is saved for.

        Raises:
          UserError: If that model is nowhere on disk.
        """
        if not self.on_disk and self.beneath is None:
            raise UserError(
                f"{self.source}: its weights were changed after they were read (an adapter was "
                "merged into them), so an adapter would belong to a model that is nowhere on disk; "
                "set export.lora=merged"
            )
        if wrapper_of(self.hf_config) is not None:
            raise UserError(
                f"{self.source}: adapters of a text model within one of text and images are not "
                "written by themselves; set export.lora=merged"
            )
        # An absolute path, because PEFT resolves it from wherever it is called.
        here = Path(self.source).expanduser()
        name = str(here.resolve()) if here.is_dir() else self.source
        saved = {path: _paths(self.params)[path] for path in self.saved}
        return AdapterBase(name, self.config, self.hf_config, saved, self.revision)


def load_policy(
    path: str,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    chat_template: str | None = None,
    context: int | None = None,
    base: str | None = None,
) -> Policy:
    """Loads a model folder, an adapter folder with its base model, or `org/name` from the Hub.

        policy = load_policy("models/tiny")
        policy.save("copy")

    Args:
      path: Hugging Face or PEFT folder, or `org/name`.
      dtype: Of the parameters; adapters are always fp32.
      mesh: Where the parameters live; None for the first device.
      chat_template: Jinja file used in place of the tokenizer's own template.
      context: Longest sequence there will be, in tokens, as `config_from_hf` has it.
      base: Base model of an adapter folder, in place of the one that the folder names.

    Raises:
      UserError: If it is missing, damaged or not supported.
    """
    return on_mesh(open_policy(path, dtype, chat_template, context, base), mesh)


def on_mesh(policy: Policy, mesh: Mesh | None) -> Policy:
    """Puts the policy's arrays on a mesh, or on the first device for None."""

    def load(arrays: Params) -> Params:
        return on_devices(arrays, None if mesh is None else shardings_for(arrays, mesh))

    lora = None if policy.lora is None else load(policy.lora)
    return replace(policy, params=load(policy.params), lora=lora)


def open_policy(
    path: str,
    dtype: str = "float32",
    chat_template: str | None = None,
    context: int | None = None,
    base: str | None = None,
) -> Policy:
    """Opens what `load_policy` loads, with the weights checked and left in their files.

    Args:
      path: Hugging Face or PEFT folder, or `org/name`.
      dtype: Of the parameters; adapters are always fp32.
      chat_template: Jinja file used in place of the tokenizer's own template.
      context: Longest sequence there will be, in tokens.
      base: Base model of an adapter folder, in place of the one that the folder names.

    Raises:
      UserError: If it is missing, damaged or not supported.
    """
    folder = find_folder(path)
    check_files(folder)
    named, model_folder = _named_model(path, folder, base)
    opened = open_model(model_folder, context)
    file_dtype = usual_dtype(opened.tensors.values())
    _check_positions(named.name, opened.config, context)
    generation = None
    if member(model_folder, "generation_config.json").exists():
        generation = read_json(model_folder, "generation_config.json")
    adapter = None
    if model_folder != folder:
        adapter = open_adapter(folder, opened.config, opened.hf_config, opened.tensors)
        opened = with_replaced(opened, adapter)
    params = lazy_params(model_folder, opened.config, jnp.dtype(dtype), opened.tensors)
    # People add tokens and templates with the adapter, so its own tokenizer comes first.
    own = any(folder.glob("tokenizer*"))
    chat = load_chat(
        str(folder if own else model_folder),
        chat_template,
        str(model_folder),
        opened.config.vocab_size,
    )
    policy = Policy(
        opened.config,
        params,
        chat,
        named.name,
        opened.hf_config,
        generation,
        file_dtype=file_dtype,
        revision=named.revision,
    )
    return policy if adapter is None else _with_adapter(policy, adapter)


def _named_model(path: str, folder: Path, base: str | None) -> tuple[BaseName, Path]:
    """Returns the name and the folder of the model: of an adapter folder, those of its base."""
    if (folder / ADAPTER_CONFIG).exists():
        return base_folder(path, folder, base)
    if base is not None:
        raise UserError(
            f"model.base={base}: {path} is no adapter folder, so it has no base model; leave "
            "model.base out"
        )
    # The folder of an installed model's name, so that an adapter can name a place as its base.
    return BaseName(str(folder) if path.startswith("@") else path, None), folder


def _check_positions(source: str, config: ModelConfig, context: int | None) -> None:
    """Raises if sequences may be longer than a model with learned positions can take."""
    positions = config.learned_positions
    if context is not None and positions is not None and context > positions:
        raise UserError(
            f"{source}: has embeddings of {positions} positions only, but sequences may have "
            f"{context} tokens; set data.max_length={positions}"
        )


def _with_adapter(policy: Policy, adapter: Adapter) -> Policy:
    """Puts an adapter beside a base that holds its whole tensors already."""
    rows = family_of(policy.hf_config).rows(policy.config)
    names = {re.sub(r"(?<=\.)\d+(?=\.)", "{i}", name) for name in adapter.replaced}
    saved = tuple(
        row.path for row in rows if row.hf_name in names and row.path in _paths(policy.params)
    )
    # PEFT cannot save a module whole and adapt it too: biases only go into a merged model.
    parted = any(path.startswith("layers/") for path in saved)
    return replace(
        policy,
        lora=adapter.lora(policy.config, policy.params),
        lora_config=adapter.config,
        saved=() if parted else saved,
        on_disk=not parted,
    )


def _paths(params: Params) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
