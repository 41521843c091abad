"""From conversations to answers: the chat template, the engine, and the text."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdpo.data.generations import SampledIds
from jaxdpo.data.pairs import Message
from jaxdpo.hub.policy import Policy
from jaxdpo.model.compute import Compute
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.sampling.engine import Request, generate_each, numbered
from jaxdpo.sampling.pool import Model


class Answer(NamedTuple):
    """The text that was sampled for one of several requests.

    Attributes:
      number: Of the request.
      text: What was answered, without end token and stop text.
      finished: Whether it ended by itself, rather than at `max_new_tokens`.
      tool_calls: Calls that a server read from the answer; the text of a local model holds its own.
      sampled: Its token ids with the one that ended it, None of a server's answer. Training takes
        them in place of the text, which would not always be encoded to the same. None as well where
        a stop text was removed from the end.
    """

    number: int
    text: str
    finished: bool
    tool_calls: tuple[dict[str, Any], ...] = ()
    sampled: SampledIds | None = None


def answer(
    policy: Policy,
    conversations: Sequence[Sequence[Message]],
    sampling: SamplingConfig | None = None,
) -> list[str]:
    """Returns the policy's answer to each conversation; several where one is repeated.

        answer(policy, [[{"role": "user", "content": "When does it open?"}]])
        # ["At 9."]

    Args:
      policy: The model.
      conversations: Messages of each, the last one not the assistant's.
      sampling: How completions are drawn; by default the likeliest token, 128 at most.

    Raises:
      BadPair: If the chat template refuses the messages.
    """
    chat = policy.chat
    # Answers come as they are done; put back into the order of the conversations.
    prompts = [chat.encode(messages, add_generation_prompt=True) for messages in conversations]
    done = {each.number: each.text for each in complete(policy, numbered(prompts), sampling)}
    return [done[number] for number in range(len(prompts))]


def complete(
    policy: Policy,
    requests: Sequence[Request],
    sampling: SamplingConfig | None = None,
    dtype: Any = None,
) -> Iterator[Answer]:
    """Yields answers as they are done, in no order.

    Args:
      policy: The model.
      requests: Prompts as token ids, and which completion of theirs is wanted.
      sampling: How completions are drawn; by default the likeliest token, 128 at most.
      dtype: Of the activations; by default the parameters'.

    Raises:
      UserError: A prompt is empty, or outgrows the model's learned positions.
    """
    sampling = sampling or SamplingConfig()
    chat = policy.chat
    dtype = jnp.dtype(dtype or jax.tree.leaves(policy.params)[0].dtype)
    # Attention over a cache is dense, and no gradient is taken: nothing is rematerialised.
    model = Model(
        policy.config,
        policy.params,
        policy.lora,
        chat.end_ids,
        Compute(dtype, "dense", "none", policy.lora_config),
        chat.decode,
    )
    for number, completion in generate_each(model, requests, sampling):
        whole = chat.decode(completion.ids)
        # The engine stops after the token in which a stop text ends; the text ends before it.
        text = before(sampling.stop, whole)
        ended = () if completion.stop is None else (completion.stop,)
        ids = SampledIds(ids=(*completion.ids, *ended), vocabulary=chat.vocabulary)
        yield Answer(number, text, completion.finished, sampled=ids if text == whole else None)


def before(stops: Sequence[str], text: str) -> str:
    """Returns the text before the first of these texts in it.

    >>> before(["END", "\\n\\n"], "One.\\n\\nTwo. END")
    'One.'
    """
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
