"""Prompts to be answered: lines that hold nothing else, or data of any form with answers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from jaxdpo.data.bad_pair import BadLine, BadPair, NothingToLearn
from jaxdpo.data.config import Role
from jaxdpo.data.pairs import Message, PreferencePair, Split
from jaxdpo.data.reading.asked import asked_in, role_of, with_system
from jaxdpo.data.reading.bad_lines import SHOWN_BAD_LINES
from jaxdpo.data.reading.examples import example_format, example_of
from jaxdpo.data.reading.formats import Draft, parted, roles_of, take_scores
from jaxdpo.data.reading.pair_forms import IGNORED_KEYS
from jaxdpo.data.reading.renaming import Renaming, check_columns
from jaxdpo.data.reading.said import Said
from jaxdpo.data.reading.schema import Where, parse_supervised
from jaxdpo.data.reading.shapes import flattened
from jaxdpo.data.reading.sources import find_sources, read_source, splits_by_name
from jaxdpo.data.reading.splits import prompt_digest
from jaxdpo.data.reading.unread import check_unread
from jaxdpo.errors import UserError
from jaxdpo.storage.files import shipped

# Stands for the answer that a line of a prompt alone does not have.
_NO_ANSWER: tuple[Message, ...] = ({"role": "assistant", "content": "…"},)


class PromptsConfig(BaseModel):
    """The prompts that are answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, AfterValidator(shipped)] = Field(
        description="file, folder, glob or org/name:config:split of the Hub: lines of messages, or "
        "of a prompt; or preference data in any form, whose answers are left out"
    )
    columns: dict[Role, str | tuple[str, ...]] = Field(
        default={},
        description="columns of the lines by what they hold, such as {prompt: question}; as in a "
        "run's data.columns",
    )
    split: Split | None = Field(default=None, description="TRAIN or TEST; default: both")
    test_fraction: float = Field(
        default=0.2,
        ge=0.0,
        lt=1.0,
        description="share of prompts, by hash, that are TEST where a line names no split",
    )
    limit: int | None = Field(default=None, ge=1, description="the first so many; default: all")


@dataclass(frozen=True)
class Prompt:
    """A prompt as a model is asked it.

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
        """Says `40 prompts (3 lines that repeat one are left out)`."""
        repeats = f" ({self.repeated} lines that repeat one are left out)" if self.repeated else ""
        return f"{len(self.prompts)} prompts{repeats}"


def read_prompts(config: PromptsConfig) -> ReadPrompts:
    """Reads prompts, exactly or not at all.

    Raises:
      UserError: If a source cannot be read, for bad lines (the first 20 are named), or if there
        are no prompts.
    """
    prompts: dict[str, Prompt] = {}
    # All bad lines are found before any is said: they are fixed together.
    bad_lines: list[str] = []
    repeated = found = 0
    for pair in _each(config, bad_lines):
        if config.split is not None and pair.split != config.split:
            continue
        found += 1
        # A prompt that is asked twice is answered once; the first line's metadata stays.
        key = prompt_digest(pair.prompt, pair.tools).hex()
        if key in prompts:
            repeated += 1
            continue
        asked = (pair.prompt, pair.tools, pair.metadata, pair.split)
        prompts[key] = Prompt(key, *asked, pair.source, pair.template_kwargs, _answer_of(pair))
    if bad_lines:
        more = len(bad_lines) - SHOWN_BAD_LINES
        shown = bad_lines[:SHOWN_BAD_LINES] + ([f"and {more} more"] if more > 0 else [])
        raise UserError("\n".join([*shown, f"{len(bad_lines)} bad lines; fix or remove them"]))
    if not prompts:
        of_split = f" of the {config.split} split" if config.split else ""
        raise UserError(f"{config.path}: holds no prompts{of_split}")
    # The limit counts prompts that are left once repeats are: so many answers are asked for.
    chosen = tuple(prompts.values())[: config.limit]
    return ReadPrompts(chosen, repeated)


def _answer_of(pair: PreferencePair) -> tuple[Message, ...]:
    """Returns the data's own answer; none where a line has no answer, or one that was found bad."""
    return () if pair.chosen == _NO_ANSWER or pair.label is False else pair.chosen


def _each(config: PromptsConfig, bad_lines: list[str]) -> Iterator[PreferencePair]:
    sources = find_sources(config.path)
    by_name = splits_by_name(sources)
    for source in sources:
        renaming = Renaming(config.columns)
        reader = _Lines(config, renaming, source.named_split if by_name else None)
        for record in read_source(source):
            if isinstance(record, BadLine):
                bad_lines.append(str(record))
            elif record.value is not None:
                where = f"{source.name}:{record.line}"
                try:
                    yield reader.prompt_of(record.value, where)
                except BadPair as bad:
                    bad_lines.append(f"{where}: {bad}")
        check_columns(source.name, renaming.missing, renaming.seen)


class _Lines:
    """Reads the prompts of one source, whose lines all say theirs in the same columns."""

    def __init__(self, config: PromptsConfig, renaming: Renaming, split: Split | None) -> None:
        self._fraction, self._renaming = config.test_fraction, renaming
        self._split: Split | None = split
        self._columns: frozenset[str] | None = None

    def prompt_of(self, line: dict[str, Any], place: str) -> PreferencePair:
        """Returns a pair whose prompt is the line's; its answer means nothing.

        Raises:
          BadPair: If the line holds no prompt.
        """
        value = flattened(self._renaming.apply(line))
        where = Where(place, self._fraction, self._split)
        return parse_supervised(self._draft(value), where, "last")[0]

    def _draft(self, value: dict[str, Any]) -> Draft:
        # A record with an answer is read as an example, so that its answer is known, too.
        form = example_format(value)
        if form == "token_ids":
            raise BadPair("no-prompt", "holds token ids; a prompt to be answered is messages")
        if form is None or form == "messages":
            return self._alone(value)
        try:
            return example_of(value, form, None, self._renaming.facts)
        except NothingToLearn:
            # Neither answer is better, or the one was found bad: the prompt is as good as any.
            return self._alone(value)

    def _alone(self, value: dict[str, Any]) -> Draft:
        """Reads a line that may have no answer."""
        roles = roles_of(value)
        if "messages" in roles:
            return example_of(_answered(value), "messages", None, self._renaming.facts)
        asked = asked_in(value, roles)
        # One file asks in the same columns throughout: a line that suddenly has others is bad.
        if not asked.messages or asked.used != (self._columns or asked.used):
            raise BadPair("no-prompt", f"has {', '.join(value)}; write messages, or a prompt")
        self._columns = asked.used
        prompt, used = with_system(asked.messages, value, roles)
        common, rest = parted(value, used | asked.used)
        # Scores compare answers, of which there are none here.
        take_scores(rest)
        check_unread(rest, prompt, self._renaming.facts)
        extra = {key: item for key, item in rest.items() if key not in IGNORED_KEYS}
        if role_of(prompt[-1]) == "assistant":
            return Draft(prompt[:-1], prompt[-1:], (), common, extra)
        return Draft(prompt, [Said("the answer", _NO_ANSWER[0])], (), common, extra)


def _answered(value: dict[str, Any]) -> dict[str, Any]:
    """Returns the line with an answer at its end, so that it is read as one that has one.

    Raises:
      BadPair: If the system alone speaks: a prompt to be answered needs a question.
    """
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        return value
    last = messages[-1]
    role = last.get("role", last.get("from")) if isinstance(last, dict) else None
    if role in ("assistant", "gpt", "model", "bot"):
        return value
    if role in ("system", "developer"):
        raise BadPair("no-user", "messages holds no user message; a prompt needs one")
    return {**value, "messages": [*messages, *_NO_ANSWER]}
