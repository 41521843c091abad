"""OpenAI-compatible servers (vLLM and the like) as the model that answers prompts.

A model is named `http://localhost:8000/v1#name`. The key is read from OPENAI_API_KEY.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.data.pairs import Message
from jaxdpo.data.reading.prompts import Prompt
from jaxdpo.errors import UserError
from jaxdpo.sampling.answers import Answer
from jaxdpo.sampling.config import SamplingConfig
from jaxdpo.servers.chat_client import ChatClient, RequestRefused


class ServerConfig(BaseModel):
    """Requests to a server; `sampling.batch_size` of them are under way at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: float = Field(default=120.0, gt=0, description="seconds until a request is given up")
    retries: int = Field(
        default=5, ge=0, description="further attempts, ever later, at 429, 5xx and time-outs"
    )


def is_server(model: str) -> bool:
    """Tells whether a model is named by a server's address."""
    return model.startswith(("http://", "https://"))


def ask_server(
    model: str,
    wanted: Sequence[tuple[Prompt, int]],
    sampling: SamplingConfig,
    server: ServerConfig,
) -> Iterator[Answer]:
    """Yields answers as they come.

    Args:
      model: `http://…#name`.
      wanted: Prompts, each with the number of the sample.
      sampling: How completions are drawn. A server draws as it likes; the seed that it is sent
        follows from `sampling.seed` and the sample's number.
      server: Time-outs and attempts.

    Raises:
      UserError: If the server refuses a request, or does not answer it after all attempts.
    """
    url, _, name = model.partition("#")
    if not name:
        raise UserError(f"{model}: names a server, but no model of it; write {url}#name")
    # Servers of one's own need no key; OpenAI's is taken from the environment where it is set.
    # The address was typed where the model is, and not found in a file of criteria.
    client = ChatClient(model, url, timeout=server.timeout, retries=server.retries, trusted=True)

    def ask(number: int) -> Answer:
        prompt, sample = wanted[number]
        where = f"{model}: {prompt.source or prompt.id}, sample {sample}"
        try:
            reply = client.complete(request(name, prompt, sample, sampling))
        except RequestRefused as refused:
            raise UserError(
                f"{where}: {refused}; what was answered is kept, and the same command continues"
            ) from refused
        choice = reply.choices[0]
        calls = [call.model_dump(mode="json") for call in choice.message.tool_calls or ()]
        text, finished = choice.message.content or "", choice.finish_reason != "length"
        return Answer(number, text, finished, tuple(calls))

    with client, ThreadPoolExecutor(sampling.batch_size) as pool:
        pending: list[Future[Answer]] = [pool.submit(ask, n) for n in range(len(wanted))]
        try:
            for done in as_completed(pending):
                yield done.result()
        finally:
            # Whoever stops reading, by an error or Ctrl-C, waits for what is under way alone.
            for each in pending:
                each.cancel()


def request(name: str, prompt: Prompt, sample: int, sampling: SamplingConfig) -> dict[str, Any]:
    """Returns the fields of a request; those that are not OpenAI's own go as vLLM reads them.

    Args:
      name: The model's name at the server.
      prompt: The prompt.
      sample: Number of the sample.
      sampling: How completions are drawn.
    """
    # Samples of one prompt need different seeds, and the same ones when an interrupted command
    # continues. Servers take a signed 32-bit integer, hence the shift.
    digest = hashlib.sha256(f"{sampling.seed} {sample}".encode()).digest()
    fields: dict[str, Any] = dict(
        model=name,
        messages=[_as_sent(message) for message in prompt.messages],
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=int.from_bytes(digest[:4], "big") >> 1,
    )
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if prompt.tools:
        fields["tools"] = list(prompt.tools)
    extra: dict[str, Any] = {}
    if sampling.top_k is not None:
        extra["top_k"] = sampling.top_k
    if prompt.template_kwargs:
        extra["chat_template_kwargs"] = prompt.template_kwargs
    return {**fields, "extra_body": extra} if extra else fields


def _as_sent(message: Message) -> Message:
    """Returns a message whose calls have their arguments as JSON text, as OpenAI's servers want."""
    if "tool_calls" not in message:
        return message
    calls = [
        {"type": "function", **call, "function": {**function, "arguments": text}}
        for call in message["tool_calls"]
        for function in [call["function"]]
        for text in [_text(function.get("arguments", {}))]
    ]
    return {**message, "tool_calls": calls}


def _text(arguments: str | dict[str, Any]) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
