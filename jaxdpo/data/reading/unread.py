"""The columns of a record that no form reads: facts to keep, or text that must not be lost."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxdpo.data.bad_pair import BadPair, show
from jaxdpo.data.reading import rendered
from jaxdpo.data.reading.columns import OTHER, is_prose, sort_of, texts_in
from jaxdpo.data.reading.said import Said

# Shorter text may stand in a message by chance.
_TELLING = 16


def check_unread(
    rest: Mapping[str, Any],
    said: Sequence[Said],
    facts: Sequence[str] = (),
    prompt_is_named: bool = True,
) -> set[str]:
    """Refuses a record whose other columns might say what the model was asked.

    A column may be left out if its name is that of a fact (`prompt_id`, `score`), if it holds no
    text, or if its text stands in the messages already: data sets repeat themselves. Where no
    column is the prompt by its name, that of a fact may hold it, too.

    Args:
      rest: The columns that no form has read.
      said: All messages of the record: prompt, chosen and rejected answer.
      facts: Columns that the user calls facts, by `data.columns`.
      prompt_is_named: Whether a column of the record is a prompt by its name. If the prompt is what
        both answers begin with, any text at all might be the real one.

    Returns:
      The columns that only repeat what was asked.

    Raises:
      BadPair: Naming the first such column.
    """
    repeats = set()
    known: list[str] | None = None
    for name, value in rest.items():
        # Numbers and dates ask nothing; most columns are decided here or by their name.
        if not isinstance(value, str | list | dict):
            continue
        sort = sort_of(name)
        if isinstance(value, list) and _repeats(value, said):
            repeats.add(name)
            continue
        if not value:
            # An instruction without an input has the column all the same.
            repeats |= {name} if sort == "asked" else set()
            continue
        if name in facts or (sort == "fact" and prompt_is_named):
            continue
        if sort == "not text":
            raise BadPair(
                "content-not-text",
                f"{name} is {show(value)}, and only text can be trained on: drop the line, or set "
                f"data.columns={{metadata: {name}}}",
            )
        texts = texts_in(value)
        if sort == "fact" or (sort == "unknown" and prompt_is_named):
            texts = list(filter(is_prose, texts))
        if not texts:
            continue
        known = _contents(said) if known is None else known
        # Text that the model reads anyway is not lost, wherever it stands a second time.
        missing = [text for text in texts if not _stands_in(text, known)]
        if missing:
            raise _lost(name, value, prompt_is_named)
        if sort == "asked":
            repeats.add(name)
    return repeats


def _repeats(value: list[Any], said: Sequence[Said]) -> bool:
    """Tells a list of the very messages of prompt and chosen answer, as many data sets have it."""
    return len(value) <= len(said) and all(
        item == each.message for item, each in zip(value, said, strict=False)
    )


def _contents(said: Sequence[Said]) -> list[str]:
    contents = [message.get("content") for _, message in said if isinstance(message, dict)]
    return [
        text.strip()
        for content in contents
        for text in ([content] if isinstance(content, str) else texts_in(content))
    ]


def _stands_in(text: str, contents: Sequence[str]) -> bool:
    text = text.strip()
    if text in contents or text in ("user", "assistant", "system", "human", "gpt", "tool"):
        return True
    if len(text) >= _TELLING and any(text in content for content in contents):
        return True
    # Alpaca has the whole example once more, as its template renders it.
    messages = rendered.messages_of(text, "", is_answer=True)
    return messages is not None and all(each["content"].strip() in contents for each in messages)


def _lost(name: str, value: Any, prompt_is_named: bool) -> BadPair:
    column = name.removesuffix(OTHER)
    if prompt_is_named:
        remedy = (
            f"set data.columns={{system: {column}}} or {{prompt: [prompt, {column}]}} to use it"
        )
    else:
        remedy = f"set data.columns={{prompt: {column}}} to use it"
    return BadPair(
        "unread-text",
        f"{column} is {show(value)}, which may be a part of what the model was asked, and nothing "
        f"reads it; {remedy}, or {{metadata: {column}}} to leave it out",
    )
