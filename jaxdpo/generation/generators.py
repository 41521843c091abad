"""What answers prompts: a model of ours, loaded from wherever it lies, or one on a server."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.devices.compilation_cache import keep_compiled
from jaxdpo.errors import UserError
from jaxdpo.generation.server import ServerConfig, ask_server, is_server
from jaxdpo.generation.to_file import Source, Wanted
from jaxdpo.hub.policy import Policy
from jaxdpo.model.digest import weights_digest
from jaxdpo.runs.load import load_source
from jaxdpo.sampling.answers import Answer, complete
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.sampling.engine import Request
from jaxdpo.storage.files import cache_folder

Dtype = Literal["float32", "bfloat16"]


def source_of(
    model: str,
    sampling: SamplingConfig,
    server: ServerConfig | None = None,
    dtype: Dtype | None = None,
    chat_template: str | None = None,
) -> Source:
    """What answers, by its name: anything `load_source` loads, or `http://…#name`.

    Args:
      model: Where it is.
      sampling: How completions are drawn.
      server: How a server is asked.
      dtype: Of activations, of a model of ours; by default float32 on CPU, bfloat16 elsewhere.
      chat_template: Jinja file in place of its own chat template, of a model of ours.

    Raises:
      UserError: If there is no such model.
    """
    if is_server(model):
        ask = partial(ask_server, model, sampling=sampling, server=server or ServerConfig())
        return Source(model, {"model": model, **_drawn(sampling)}, ask)
    keep_compiled(cache_folder(None) / "compiled")
    return policy_source(model, load_source(model, chat_template), sampling, dtype)


def policy_source(
    name: str, policy: Policy, sampling: SamplingConfig, dtype: Dtype | None = None
) -> Source:
    """A model in memory as what answers, under a name."""
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    settings = {
        "model": weights_digest({"params": policy.params, "lora": policy.lora or {}}),
        "chat": policy.chat.fingerprint,
        "dtype": dtype,
        **_drawn(sampling),
    }
    return Source(name, settings, partial(ask_policy, policy, sampling=sampling, dtype=dtype))


def _drawn(sampling: SamplingConfig) -> dict[str, Any]:
    """What answers depend on: how many are drawn at a time is no part of it."""
    return sampling.model_dump(mode="json", exclude={"batch_size"})


def ask_policy(
    policy: Policy, wanted: Sequence[Wanted], sampling: SamplingConfig, dtype: Dtype
) -> Iterator[Answer]:
    """Yields a policy's answers as they are done.

    Raises:
      UserError: For a prompt that the chat template refuses, or that is too long for the model.
    """
    requests = []
    for prompt, sample in wanted:
        try:
            ids = policy.chat.encode(prompt.messages, prompt.tools, True, prompt.template_kwargs)
        except BadPair as bad:
            raise UserError(f"{prompt.source}: {bad}") from bad
        requests.append(Request(ids, sample))
    return complete(policy, requests, sampling, jnp.dtype(dtype))
