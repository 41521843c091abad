"""Tries an export before a run spends hours on what it will export."""

import tempfile
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from jaxdpo.errors import UserError
from jaxdpo.hub.adapter_pairs import check_stackable
from jaxdpo.hub.adapter_write import check_adapter
from jaxdpo.hub.families import config_to_hf, family_of
from jaxdpo.hub.policy import Policy
from jaxdpo.hub.tokenizer_files import write_tokenizer
from jaxdpo.hub.write import json_text, tensor_specs
from jaxdpo.model.decoder import abstract_params
from jaxdpo.model.lora import LoraConfig, init_lora


def check_exportable(
    policy: Policy,
    lora_config: LoraConfig | None = None,
    lora: Literal["merged", "adapter"] = "merged",
    dtype: str | None = None,
) -> None:
    """Checks that `Policy.save` will succeed: describes the weights, and writes all but them.

    Args:
      policy: The model that training starts from.
      lora_config: Adapters that will be trained; None if all parameters will be.
      lora: What the export does with adapters.
      dtype: Of the exported weights; None to keep it.

    Raises:
      UserError: If the trained model could not be exported, with what to set instead.
    """
    try:
        _try(policy, lora_config, lora, dtype)
    except UserError:
        raise
    # A fault of the program in the export must stop the run now and not at its end.
    except (KeyError, TypeError, ValueError, AttributeError, OSError, AssertionError) as error:
        raise UserError(
            f"{policy.source}: a model trained from it could not be exported ({error!r}); training "
            "has not begun. Please report this with the model's config.json"
        ) from error


def _try(
    policy: Policy,
    lora_config: LoraConfig | None,
    lora: Literal["merged", "adapter"],
    dtype: str | None,
) -> None:
    config = policy.config
    if lora_config is not None and lora == "adapter":
        shapes = jax.eval_shape(lambda: init_lora(config, lora_config, jax.random.key(0)))
        if policy.beneath is not None:
            # Shapes would do, but for what cannot be stacked at all.
            check_stackable(policy.beneath[1], lora_config)
        check_adapter(shapes, lora_config, policy.adapter_base())
    else:
        rows = family_of(policy.hf_config).rows(config)
        # Shapes alone: a quantized base is written dequantized.
        tensor_specs(rows, abstract_params(config, np.dtype("float32")), dtype)
        json_text(config_to_hf(config, policy.hf_config))
        json_text(policy.generation())
        policy.carried()
    # Small enough to be written in full; what a tokenizer cannot say shows only then.
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), policy.chat.tokenizer)
