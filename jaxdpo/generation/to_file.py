"""Answers to many prompts in a file that an interrupted sampling continues.

answers.jsonl            every answer, in the order of the prompts: there when all are
answers.jsonl.partial    those so far, as they came
answers.settings.json    what they were drawn from and how; any other sampling is refused
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdpo.data.generations import Generation, generation, read_generations
from jaxdpo.data.reading.prompts import Prompt
from jaxdpo.data.resumable import check_settings, partial_of, read_partial, write_whole
from jaxdpo.errors import UserError
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
