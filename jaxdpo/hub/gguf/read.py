"""A GGUF file → a model: architecture, weights, tokenizer and the tokens that end an answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from jaxdpo.errors import UserError
from jaxdpo.hub.families import config_from_hf, family_of
from jaxdpo.hub.gguf.architecture import config_of
from jaxdpo.hub.gguf.file import GgufFile, open_file
from jaxdpo.hub.gguf.tensors import hf_tensors
from jaxdpo.hub.gguf.tokenizer_in import SPECIAL_KEYS, tokenizer_of
from jaxdpo.hub.read import lazy_tree
from jaxdpo.model.config import ModelConfig
from jaxdpo.model.decoder import Params, abstract_params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Tokens that end a turn or a message, which some models have beside the end of text.
_MORE_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


@dataclass(frozen=True)
class GgufModel:
    """The model of a GGUF file, in the terms of a Hugging Face folder.

    Attributes:
      config: Architecture.
      params: Parameters, each left in the file and dequantized when it is read.
      tokenizer: The tokenizer, with its chat template.
      hf_config: config.json.
      generation_config: generation_config.json.
      name: Name that the file gives the model, or that of the file.
      license: Licence that the file names, or None.
    """

    config: ModelConfig
    params: Params
    tokenizer: "PreTrainedTokenizerFast"
    hf_config: dict[str, Any]
    generation_config: dict[str, Any]
    name: str
    license: str | None

    def card(self, base_model: str | None = None) -> str:
        """Returns the model card: what the file says about the model, and nothing else.

        Args:
          base_model: Name on the Hugging Face Hub of the model that the file was made from.
        """
        fields = {"license": self.license, "base_model": base_model}
        stated = {name: value for name, value in fields.items() if value is not None}
        header = yaml.safe_dump({"library_name": "transformers", **stated}, sort_keys=False)
        return f"---\n{header}---\n\n# {self.name}\n\nConverted from a GGUF file by jaxdpo.\n"


def open_gguf(path: Path) -> GgufModel:
    """Opens the model of a GGUF file of the llama architecture.

    Args:
      path: The file.

    Raises:
      UserError: If the package `gguf` is missing, the file is damaged, or it holds another
        architecture, another kind of tokenizer or numbers that cannot be dequantized.
    """
    file = open_file(path)
    described = config_of(file)
    config = config_from_hf(described)
    tokens = _tokens(file)
    hf_config = {**described, **tokens}
    tensors = hf_tensors(path, file.tensors, config)
    rows = family_of(hf_config).rows(config)
    params = lazy_tree(path, tensors, rows, abstract_params(config, np.dtype(np.float32)))
    tokenizer = tokenizer_of(file)
    # The ids beyond would read from nowhere.
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"{path}: has {len(tokenizer)} tokens, but the embedding has {config.vocab_size} rows"
        )
    name, license = (file.metadata.get(f"general.{key}") for key in ("name", "license"))
    return GgufModel(
        config,
        params,
        tokenizer,
        hf_config,
        tokens,
        str(name or path.stem),
        license and str(license),
    )


def _tokens(file: GgufFile) -> dict[str, Any]:
    """Returns the ids of special tokens as generation_config.json has them."""
    # transformers stops at every id of the list. unk_token_id belongs to the tokenizer alone.
    ids = {f"{name}_id": file.metadata.get(key) for name, key in SPECIAL_KEYS.items()}
    ends = [ids["eos_token_id"], *(file.metadata.get(key) for key in _MORE_ENDS)]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    return {name: id for name, id in ids.items() if id is not None and name != "unk_token_id"}
