"""Answers of a model, one a line: sampling writes them and judging reads them.

{"id": "9f…", "messages": [{"role": "user", "content": "Hi"}], "completion": "Hello!",
 "sample": 0, "model": "runs/dpo", "finished": true, "split": "TEST", "metadata": {}}
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxdpo.data.pairs import Message, Split
from jaxdpo.data.reading.prompts import Prompt
from jaxdpo.errors import UserError

Line = TypeVar("Line", bound=BaseModel)


class SampledIds(BaseModel):
    """Token ids that an answer was sampled as, with the token that ended it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ids: tuple[int, ...] = Field(description="the token ids")
    vocabulary: str = Field(description="digest of the vocabulary that they belong to")


class Generation(BaseModel):
    """One answer to one prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="SHA-256 of messages and tools")
    messages: tuple[Message, ...] = Field(min_length=1, description="the prompt")
    completion: str = Field(description="the answer")
    sample: int = Field(default=0, ge=0, description="its number among the prompt's answers")
    model: str = Field(description="the model that answered")
    finished: bool = Field(
        default=True, description="false: cut off at the most tokens that were allowed"
    )
    split: Split = Field(default="TEST", description="of the prompt")
    tools: tuple[dict[str, Any], ...] = Field(default=(), description="of the prompt")
    metadata: dict[str, Any] = Field(default_factory=dict, description="of the prompt's line")
    tool_calls: tuple[dict[str, Any], ...] = Field(
        default=(), description="calls that the answer makes, as OpenAI writes them"
    )
    reference: tuple[Message, ...] = Field(
        default=(), description="the data set's own answer to the prompt"
    )

    sampled: SampledIds | None = Field(
        default=None, description="what a local model drew, which is what training will take"
    )

    def line(self) -> str:
        """Returns the answer as its line of a file; fields that hold nothing are left out."""
        value = self.model_dump()
        for name in ("tools", "tool_calls", "reference", "sampled"):
            if not value[name]:
                del value[name]
        return json.dumps(value, ensure_ascii=False) + "\n"


def generation(
    prompt: Prompt,
    sample: int,
    model: str,
    text: str,
    finished: bool,
    tool_calls: Sequence[dict[str, Any]] = (),
    sampled: SampledIds | None = None,
) -> Generation:
    """Returns the answer of a model to a prompt.

    Args:
      prompt: The prompt.
      sample: The answer's number among the prompt's answers.
      model: Name of the model.
      text: The answer.
      finished: False if it was cut off at the most tokens that were allowed.
      tool_calls: Calls that the answer makes.
      sampled: Its token ids, of a local model's answer.
    """
    return Generation(
        id=prompt.id,
        messages=prompt.messages,
        completion=text,
        sample=sample,
        model=model,
        finished=finished,
        split=prompt.split,
        tools=prompt.tools,
        metadata=prompt.metadata,
        tool_calls=tuple(tool_calls),
        reference=prompt.answer,
        sampled=sampled,
    )


def read_generations(path: str | Path) -> list[Generation]:
    """Reads a file of generations.

    Raises:
      UserError: Naming the first line that is not one.
    """
    return load_lines(path, Generation)


def load_lines(path: str | Path, line_type: type[Line]) -> list[Line]:
    """Reads a file whose lines are all of one type.

    It is less strict than the readers of training data: a model may answer with a NUL.

    Raises:
      UserError: If it cannot be read, or naming the first line that is not of that type.
    """
    found = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found.append(_parsed(line, line_type, f"{path}:{number}"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return found


def _parsed(line: bytes, line_type: type[Line], where: str) -> Line:
    try:
        return line_type.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise UserError(f"{where}: {field}{': ' if field else ''}{problem['msg']}") from None


def by_prompt(generations: Iterable[Generation]) -> dict[str, Sequence[Generation]]:
    """Returns each prompt's answers by its id, in the order of their samples."""
    # Answers of one prompt may come in any order: servers finish them as they can.
    groups: dict[str, list[Generation]] = {}
    for each in generations:
        groups.setdefault(each.id, []).append(each)
    return {key: sorted(group, key=lambda each: each.sample) for key, group in groups.items()}
