"""Prompts and answers in the forms that annotation tools import, so that a team may go on there.

What comes back from those tools is read by `argilla.py` and `label_studio.py` beside this.
"""

from collections.abc import Sequence
from typing import Any

from jaxdpo.data.pairs import Message
from jaxdpo.storage.files import json_digest


def argilla_record(messages: Sequence[Message], answers: Sequence[Any]) -> dict[str, Any]:
    """Returns a record as Argilla 2 reads it from JSON (`dataset.records.from_json`).

    Its fields are `prompt`, a chat, and `response_1`, `response_2`, …; the data set needs a
    `ChatField` and `TextField`s of these names.

    >>> argilla_record([{"role": "user", "content": "When?"}], ["At 8.", "At 9."])["fields"]
    {'prompt': [{'role': 'user', 'content': 'When?'}], 'response_1': 'At 8.', 'response_2': 'At 9.'}
    """
    prompt = [{"role": m["role"], "content": m.get("content") or ""} for m in messages]
    responses = {f"response_{i}": text_of(each) for i, each in enumerate(answers, start=1)}
    return {
        "id": _id(messages),
        "fields": {"prompt": prompt, **responses},
        "metadata": {},
        "suggestions": {},
        "responses": {},
        "vectors": {},
    }


def label_studio_task(messages: Sequence[Message], answers: Sequence[Any]) -> dict[str, Any]:
    """Returns a task as Label Studio imports it: `{"data": {…}}`.

    `prompt` is the conversation as text, `messages` the same as data; `answer1`, `answer2`, … are
    what a labelling configuration shows as `$answer1`.
    """
    texts = {f"answer{i}": text_of(each) for i, each in enumerate(answers, start=1)}
    said = [f"{m['role']}: {m.get('content') or ''}" for m in messages]
    # A single question reads best alone; roles are needed only where there are several.
    prompt = str(messages[0].get("content") or "") if len(messages) == 1 else "\n\n".join(said)
    return {"data": {"id": _id(messages), "prompt": prompt, "messages": list(messages), **texts}}


def text_of(answer: Any) -> str:
    """Returns the text of an answer, whatever form it has."""
    if isinstance(answer, str):
        return answer
    messages = answer if isinstance(answer, list) else [answer]
    return "\n".join(str(message.get("content") or "") for message in messages)


def _id(messages: Sequence[Message]) -> str:
    # The same prompt has the same id in every export, so that replies find their way back.
    return json_digest(list(messages))[:32]
