"""Models that answer prompts: local ones, wherever they lie, those on a server, and the data."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.devices.compilation_cache import keep_compiled
from jaxdpo.errors import UserError
from jaxdpo.generation.server import ServerConfig, ask_server, is_server
from jaxdpo.generation.started_server import StartedServer
from jaxdpo.generation.to_file import Source, Wanted
from jaxdpo.hub.policy import Policy
from jaxdpo.model.digest import weights_digest
from jaxdpo.runs.load import load_source
from jaxdpo.sampling.answers import Answer, complete
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.sampling.engine import Request
from jaxdpo.storage.files import cache_folder

Dtype = Literal["float32", "bfloat16"]
# In the place of a model: the answers that the data itself gives to its prompts.
DATA_ANSWERS = "@answers"


def source_of(
    model: str,
    sampling: SamplingConfig,
    server: ServerConfig | None = None,
    dtype: Dtype | None = None,
    chat_template: str | None = None,
) -> Source:
    """Opens the model of a name: anything that `load_source` loads, or `http://…#name`.

    Args:
      model: Place of the model.
      sampling: How completions are drawn.
      server: How a server is asked.
      dtype: Of a local model's activations; by default float32 on CPU, bfloat16 elsewhere.
      chat_template: Jinja file in place of a local model's own chat template.

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
    """Returns a model in memory as one that answers prompts.

    Args:
      name: Its name in the file of answers.
      policy: The model.
      sampling: How completions are drawn.
      dtype: Of activations; by default float32 on CPU, bfloat16 elsewhere.
    """
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    # The weights and not their place: a folder that was moved continues, and one that was trained
    # anew does not.
    settings = {
        "model": weights_digest({"params": policy.params, "lora": policy.lora or {}}),
        "chat": policy.chat.fingerprint,
        "dtype": dtype,
        **_drawn(sampling),
    }
    return Source(name, settings, partial(ask_policy, policy, sampling=sampling, dtype=dtype))


def started_source(server: StartedServer, model: str, sampling: SamplingConfig) -> Source:
    """Returns a model that a server of its own answers with.

    Args:
      server: The server, which the first question starts.
      model: Place of the model, its name in the file of answers.
      sampling: How completions are drawn.
    """
    # Neither port nor command: the same rounds continue at another port and with another server.
    settings = {"model": model, "started": True, **_drawn(sampling)}
    return Source(model, settings, partial(server.ask, sampling=sampling))


def data_source() -> Source:
    """Returns the data's own answers as a model that answers prompts."""
    return Source(DATA_ANSWERS, {"model": DATA_ANSWERS}, _ask_data, fresh=True)


def _ask_data(wanted: Sequence[Wanted]) -> Iterator[Answer]:
    missing = [prompt for prompt, _ in wanted if not prompt.answer]
    if missing:
        raise UserError(
            f"{DATA_ANSWERS}: the data has no answer to {len(missing)} of {len(wanted)} prompts "
            f"(the first: {missing[0].source or missing[0].id}); leave those prompts out, or "
            f"compare without {DATA_ANSWERS}"
        )
    for number, (prompt, _) in enumerate(wanted):
        calls = [call for message in prompt.answer for call in message.get("tool_calls") or ()]
        yield Answer(number, prompt.answer[-1].get("content") or "", True, tuple(calls))


def _drawn(sampling: SamplingConfig) -> dict[str, Any]:
    """Returns the settings that answers depend on: the batch size is none of them."""
    return sampling.model_dump(mode="json", exclude={"batch_size"})


def ask_policy(
    policy: Policy, wanted: Sequence[Wanted], sampling: SamplingConfig, dtype: Dtype
) -> Iterator[Answer]:
    """Yields a policy's answers as they are done.

    Args:
      policy: The model.
      wanted: Prompts, each with the number of the sample.
      sampling: How completions are drawn.
      dtype: Of activations.

    Raises:
      UserError: For a prompt that the chat template refuses, or that is too long for the model.
    """
    # All prompts are rendered before the first is answered, so that a bad one is said at once.
    requests = []
    for prompt, sample in wanted:
        try:
            ids = policy.chat.encode(prompt.messages, prompt.tools, True, prompt.template_kwargs)
        except BadPair as bad:
            raise UserError(f"{prompt.source}: {bad}") from bad
        requests.append(Request(ids, sample))
    return complete(policy, requests, sampling, jnp.dtype(dtype))
