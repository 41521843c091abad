"""Prompts to be answered: lines that hold nothing else, or preference data of any form."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from jaxdpo.data.bad_pair import BadLine, BadPair
from jaxdpo.data.pairs import Message, PreferencePair, Split
from jaxdpo.data.reading.bad_lines import SHOWN_BAD_LINES
from jaxdpo.data.reading.formats import drafts_of, format_of
from jaxdpo.data.reading.schema import parse_pair, parse_supervised
from jaxdpo.data.reading.sources import find_sources, read_source
from jaxdpo.data.reading.splits import prompt_digest
from jaxdpo.errors import UserError
from jaxdpo.storage.files import shipped

# Stands for the answer that a line of a prompt alone does not have.
_NO_ANSWER: tuple[Message, ...] = ({"role": "assistant", "content": "…"},)


class PromptsConfig(BaseModel):
    """Which prompts are answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, AfterValidator(shipped)] = Field(
        description="file, folder, glob or org/name:config:split of the Hub: lines of messages, or "
        "of a prompt; or preference data in any form, whose answers are left out"
    )
    split: Split | None = Field(default=None, description="TRAIN or TEST; default: both")
    test_fraction: float = Field(
        default=0.2,
        ge=0.0,
        lt=1.0,
        description="share of prompts, by hash, that are TEST where a line names no split",
    )
    limit: int | None = Field(default=None, ge=1, description="the first so many; default: all")


def with_path(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command, in which `data=file` stands for `data.path=file`."""
    return [
        f"data.path={argument.removeprefix('data=')}" if argument.startswith("data=") else argument
        for argument in arguments
    ]


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Attributes:
      id: SHA-256 of messages and tools, in hexadecimal.
      messages: Each `{"role": ..., "content": ..., ...}`, the last one not the assistant's.
      tools: Function definitions for the chat template.
      metadata: The user's own fields.
      split: "TRAIN" or "TEST".
      source: Where it stands, as `file:line`.
      template_kwargs: Further variables for the chat template.
      answer: The answer that the data gives to the prompt, its messages; empty if it gives none. Of
        a preference pair it is the chosen one, of several lines with one prompt the first line's.
    """

    id: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    split: Split = "TEST"
    source: str = ""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    answer: tuple[Message, ...] = ()


@dataclass(frozen=True)
class ReadPrompts:
    """The prompts of a source, each once, in its order.

    Attributes:
      prompts: The prompts.
      repeated: How many lines asked what an earlier one asks, and were left out.
    """

    prompts: tuple[Prompt, ...]
    repeated: int

    def summary(self) -> str:
        """`40 prompts (3 lines that repeat one are left out)`."""
        repeats = f" ({self.repeated} lines that repeat one are left out)" if self.repeated else ""
        return f"{len(self.prompts)} prompts{repeats}"


def read_prompts(config: PromptsConfig) -> ReadPrompts:
    """Reads prompts, exactly or not at all.

    Raises:
      UserError: If a source cannot be read, for bad lines (the first 20 are named), or if there
        are no prompts.
    """
    prompts: dict[str, Prompt] = {}
    bad_lines: list[str] = []
    repeated = found = 0
    for pair in _each(config, bad_lines):
        if config.split is not None and pair.split != config.split:
            continue
        found += 1
        key = prompt_digest(pair.prompt, pair.tools).hex()
        if key in prompts:
            repeated += 1
            continue
        asked = (pair.prompt, pair.tools, pair.metadata, pair.split)
        prompts[key] = Prompt(key, *asked, pair.source, pair.template_kwargs, _answer_of(pair))
    if bad_lines:
        more = len(bad_lines) - SHOWN_BAD_LINES
        shown = bad_lines[:SHOWN_BAD_LINES] + ([f"and {more} more"] if more > 0 else [])
        raise UserError("\n".join([*shown, f"{len(bad_lines)} bad lines; mend or remove them"]))
    if not prompts:
        of_split = f" of the {config.split} split" if config.split else ""
        raise UserError(f"{config.path}: holds no prompts{of_split}")
    chosen = tuple(prompts.values())[: config.limit]
    return ReadPrompts(chosen, repeated)


def _answer_of(pair: PreferencePair) -> tuple[Message, ...]:
    """Returns the data's own answer; none where a line has no answer, or one that was found bad."""
    return () if pair.chosen == _NO_ANSWER or pair.label is False else pair.chosen


def _each(config: PromptsConfig, bad_lines: list[str]) -> Iterator[PreferencePair]:
    for source in find_sources(config.path):
        for record in read_source(source):
            if isinstance(record, BadLine):
                bad_lines.append(str(record))
            elif record.value is not None:
                where = f"{source.name}:{record.line}"
                try:
                    yield _prompt_of(record.value, where, config.test_fraction)
                except BadPair as bad:
                    bad_lines.append(f"{where}: {bad}")


def _prompt_of(value: dict[str, Any], where: str, test_fraction: float) -> PreferencePair:
    """A pair whose prompt is the line's; its answers mean nothing."""
    if value.get("prompt") is not None and not {"chosen", "rejected", "completions"} & set(value):
        asked = value["prompt"]
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        value = {**value, "messages": messages}
        del value["prompt"]
    form = format_of(value)
    if form == "messages":
        return parse_supervised(_answered(value), where, test_fraction, "last")[0]
    if form is None:
        raise BadPair("no-prompt", f"has {', '.join(value)}; write messages, or a prompt")
    if form == "token_ids":
        raise BadPair("no-prompt", "holds token ids; a prompt to be answered is messages")
    return parse_pair(drafts_of(value, form, None)[0], where, test_fraction)


def _answered(value: dict[str, Any]) -> dict[str, Any]:
    """The line with an answer at its end, where it has none, so that it is read as one that has."""
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        return value
    last = messages[-1]
    if isinstance(last, dict) and last.get("role") in ("assistant", "gpt", "model", "bot"):
        return value
    return {**value, "messages": [*messages, *_NO_ANSWER]}
