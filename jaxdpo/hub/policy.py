"""A policy: a decoder with its weights, its adapters if any, and its tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdpo.data.tokenization.chat import Chat, load_chat
from jaxdpo.devices.sharding import shardings_for
from jaxdpo.errors import UserError
from jaxdpo.hub.adapter import ADAPTER_CONFIG, base_of, lazy_adapter, save_adapter
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.folder import check_files, find_folder, member, read_config, read_json
from jaxdpo.hub.quantized import dequantize_params, kind_of, quantize_params, read_part
from jaxdpo.hub.read import lazy_params, on_devices
from jaxdpo.hub.write import MAX_SHARD_BYTES, json_text, save_pretrained
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params
from jaxdpo.model.lora import LoraConfig, LoraParams, merge_lora, merged_kernel
from jaxdpo.model.quantized import BaseKind, is_quantized
from jaxdpo.storage.lazy_array import Spans, Stored


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
        dequantized = dequantize_params(self.params)
        params = merge_lora(dequantized, self.lora, self.lora_config.scale, _merged)
        return replace(self, params=params, lora=None, lora_config=None)

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
            assert self.lora_config is not None
            # An absolute path, because PEFT resolves it from wherever it is called.
            here = Path(self.source).expanduser()
            base = str(here.resolve()) if here.is_dir() else self.source
            hf_config, config = self.hf_config, self.config
            save_adapter(
                folder, self.lora, self.lora_config, tokenizer, hf_config, config, base, card
            )
            return
        files = card
        if self.generation_config is not None:
            files = {**card, "generation_config.json": json_text(self.generation_config)}
        save_pretrained(
            folder,
            self.config,
            dequantize_params(self.merged().params),
            tokenizer,
            self.hf_config,
            files,
            None if dtype is None else jnp.dtype(dtype),
            max_shard_bytes,
        )


def load_policy(
    path: str,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    chat_template: str | None = None,
    context: int | None = None,
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

    Raises:
      UserError: If it is missing, damaged or not supported.
    """
    return on_mesh(open_policy(path, dtype, chat_template, context), mesh)


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
) -> Policy:
    """Opens what `load_policy` loads, with the weights checked and left in their files.

    Args:
      path: Hugging Face or PEFT folder, or `org/name`.
      dtype: Of the parameters; adapters are always fp32.
      chat_template: Jinja file used in place of the tokenizer's own template.
      context: Longest sequence there will be, in tokens.

    Raises:
      UserError: If it is missing, damaged or not supported.
    """
    folder = find_folder(path)
    check_files(folder)
    if not (folder / ADAPTER_CONFIG).exists():
        return _open_model(path, folder, dtype, chat_template, context)
    named = base_of(folder)
    base_folder = find_folder(named)
    check_files(base_folder)
    base = _open_model(named, base_folder, dtype, chat_template, context)
    lora, lora_config = lazy_adapter(folder, base.config, base.hf_config)
    return replace(base, lora=lora, lora_config=lora_config)


def _open_model(
    source: str, folder: Path, dtype: str, chat_template: str | None, context: int | None
) -> Policy:
    hf_config = read_config(folder)
    config = config_from_hf(hf_config, context)
    positions = config.learned_positions
    if context is not None and positions is not None and context > positions:
        raise UserError(
            f"{source}: has embeddings of {positions} positions only, but sequences may have "
            f"{context} tokens; set data.max_length={positions}"
        )
    chat = load_chat(str(folder), chat_template)
    _check_vocabulary(source, chat, config)
    generation = None
    if member(folder, "generation_config.json").exists():
        generation = read_json(folder, "generation_config.json")
    params = lazy_params(folder, config, jnp.dtype(dtype))
    return Policy(config, params, chat, source, hf_config, generation)


def _merged(kernel: Any, pair: dict[str, Any], scale: float) -> Any:
    """Adds an adapter to a kernel; one that is read by parts gets its share with each part."""
    if not isinstance(kernel, Stored):
        return merged_kernel(kernel, pair, scale)
    # Only the rows of `a` and the columns of `b` that this part of the kernel needs.
    ranks = slice(0, pair["a"].shape[-1])

    def read(spans: Spans) -> np.ndarray:
        *leading, rows, columns = spans
        a = read_part(pair["a"], (*leading, rows, ranks))
        b = read_part(pair["b"], (*leading, ranks, columns))
        terms = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
        return np.asarray(merged_kernel(jnp.asarray(kernel.read(spans)), terms, scale))

    return replace(kernel, read=read)


def _check_vocabulary(path: str, chat: Chat, config: ModelConfig) -> None:
    tokens = len(chat.tokenizer)
    if tokens > config.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {tokens} tokens, but the model's embedding only "
            f"{config.vocab_size} rows; use the tokenizer that belongs to the model"
        )
