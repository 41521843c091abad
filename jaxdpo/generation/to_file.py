"""Answers to many prompts in a file that an interrupted sampling continues.

answers.jsonl            every answer, in the order of the prompts: there when all are
answers.jsonl.partial    those so far, as they came
answers.settings.json    what they were drawn from and how; any other sampling is refused
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdpo.data.generations import Generation, generation
from jaxdpo.data.reading.prompts import Prompt
from jaxdpo.data.resumable import resume_lines
from jaxdpo.sampling.answers import Answer

# Which sample of which prompt.
Wanted = tuple[Prompt, int]


@dataclass(frozen=True)
class Source:
    """A model that answers prompts, here or on a server.

    Attributes:
      model: Its name in the file.
      settings: Everything that its answers depend on beside the prompt and the sample's number.
      ask: Yields answers to what is wanted, by number, as they are done.
      fresh: Whether answers are asked for anew each time, because they cost nothing and may have
        changed.
    """

    model: str
    settings: dict[str, Any]
    ask: Callable[[Sequence[Wanted]], Iterator[Answer]]
    fresh: bool = False


def sample_to_file(
    path: Path,
    source: Source,
    prompts: Sequence[Prompt],
    samples: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Generation]:
    """Samples answers to each prompt, writes each as it comes, and returns all.

    Args:
      path: The file; those beside it are named after it.
      source: The model that answers.
      prompts: The prompts, each once.
      samples: Answers to each.
      advance: Called with the number of answers that were added.

    Raises:
      UserError: If the files are of another sampling, or cannot be written, or the source fails.
    """
    wanted = [(prompt, sample) for prompt in prompts for sample in range(samples)]
    settings = source.settings | {"samples": samples}
    if source.fresh:
        path.unlink(missing_ok=True)
    with resume_lines(path, Generation, lambda each: (each.id, each.sample), settings) as lines:
        # A draw depends on the seed, the prompt and the sample's number alone, never on what else
        # is in the batch: so those that are missing come out as they would have without a break.
        missing = [
            (prompt, sample) for prompt, sample in wanted if (prompt.id, sample) not in lines
        ]
        advance(len(wanted) - len(missing))
        for answer in source.ask(missing) if missing else ():
            prompt, sample = missing[answer.number]
            lines.add(
                generation(
                    prompt,
                    sample,
                    source.model,
                    answer.text,
                    answer.finished,
                    answer.tool_calls,
                    answer.sampled,
                )
            )
            advance(1)
        return lines.finish([(prompt.id, sample) for prompt, sample in wanted])
