"""Answers to many prompts in a file that an interrupted sampling continues.

answers.jsonl            every answer, in the order of the prompts: there when all are
answers.jsonl.partial    those so far, as they came
answers.settings.json    what they were drawn from and how; any other sampling is refused
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jaxdpo.data.generations import Generation, Line, generation, read_generations
from jaxdpo.data.prompts import Prompt
from jaxdpo.errors import UserError
from jaxdpo.files import replacing
from jaxdpo.sampling.answers import Answer

# Which sample of which prompt.
Wanted = tuple[Prompt, int]


@dataclass(frozen=True)
class Source:
    """What answers prompts.

    Attributes:
      model: What it is called in the file.
      settings: All that its answers depend on beside the prompt and the sample's number.
      ask: Yields answers to what is wanted, by number, as they are done.
    """

    model: str
    settings: dict[str, Any]
    ask: Callable[[Sequence[Wanted]], Iterator[Answer]]


def sample_to_file(
    path: Path,
    source: Source,
    prompts: Sequence[Prompt],
    samples: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Generation]:
    """Asks for so many answers to each prompt, keeps each as it comes, and returns all.

    Args:
      path: The file; those beside it are named after it.
      source: What answers.
      prompts: The prompts, each once.
      samples: Answers to each.
      advance: Told of every so many answers that there are.

    Raises:
      UserError: If the files are of another sampling, or cannot be written, or the source fails.
    """
    wanted = [(prompt, sample) for prompt in prompts for sample in range(samples)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_settings(path.with_suffix(".settings.json"), source.settings | {"samples": samples})
        partial = partial_of(path)
        kept = [
            *(read_generations(path) if path.exists() else ()),
            *read_partial(partial, Generation),
        ]
        done = {(each.id, each.sample): each for each in kept}
        missing = [(p, sample) for p, sample in wanted if (p.id, sample) not in done]
        advance(len(wanted) - len(missing))
        if missing:
            with open(partial, "a", encoding="utf-8") as file:
                for answer in source.ask(missing):
                    prompt, sample = missing[answer.number]
                    new = generation(prompt, sample, source.model, answer.text, answer.finished)
                    done[prompt.id, sample] = new
                    file.write(new.line())
                    file.flush()
                    advance(1)
        ordered = [done[prompt.id, sample] for prompt, sample in wanted]
        write_whole(path, ordered, kept)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    return ordered


def partial_of(path: Path) -> Path:
    """Where the lines of a file stand until all are there."""
    return path.with_name(path.name + ".partial")


def write_whole(path: Path, lines: Sequence[Generation], kept: Sequence[Generation]) -> None:
    """Puts the whole file, now that all lines are there, in the place of those so far.

    Args:
      path: The file.
      lines: All lines, in their order.
      kept: Those there were before; a file that holds just these, in this order, stays as it is.
    """
    if lines != kept or not path.exists():
        with replacing(path) as file:
            file.writelines(each.line() for each in lines)
    with suppress(FileNotFoundError):
        partial_of(path).unlink()


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Keeps what a file depends on beside it, and refuses to continue a file that has another.

    Raises:
      UserError: Naming each setting that differs.
    """
    settings = json.loads(json.dumps(settings))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{name} was {before.get(name)!r}, is now {settings.get(name)!r}"
            for name in sorted(before.keys() | settings.keys())
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise UserError(
                f"{path} belongs to other settings: {'; '.join(changed)}. Put them back to "
                "continue it, or write to a new place"
            )
        return
    with replacing(path) as file:
        json.dump(settings, file, indent=1, ensure_ascii=False)


def read_partial(path: Path, line_type: type[Line]) -> list[Line]:
    """What was written before; a line that was cut off is cut away, so that others may follow."""
    if not path.exists():
        return []
    whole, found = 0, []
    content = path.read_bytes()
    for line in content.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            found.append(line_type.model_validate_json(line))
        except ValidationError:
            break
        whole += len(line)
    if whole < len(content):
        with open(path, "r+b") as file:
            file.truncate(whole)
    return found
