"""Highlight format: give a note back with the number that was asked for between stars.

    Note on Tarik Dolex:
    It opens at 9, costs only 14, takes about 2.
    Highlight what it costs.

    It opens at 9, costs only **14**, takes about 2.

The writers at times highlight another number. A completion fails if it highlights anything but what
was asked for.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdpo.data.pairs import Message
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.quickstart.task import Split
from jaxdpo.use_cases.names import draw_name
from jaxdpo.use_cases.task import Domain, UseCase, Written
from jaxdpo.use_cases.word_limit import draw_facts

OPENINGS: dict[Domain, tuple[str, ...]] = {
    "in-domain": ("Note on {}:", "About {}:"),
    "shifted": ("Offer of {}:", "Details of {}:"),
}
INSTRUCTIONS: dict[Domain, tuple[str, ...]] = {
    "in-domain": ("Highlight what it {}.", "Mark how much it {}."),
    "shifted": ("Put stars round what it {}.", "Show in bold what it {}."),
}
COUNTS = (3, 4)

# How often a writer highlights another number.
MISTAKES = 0.173


def write(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Draws a prompt, and the note as a writer highlighted it.

    Args:
      domain: Domain of the prompt.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    facts = draw_facts(domain, rng.choice(COUNTS), rng)
    note = f"It {', '.join(facts)}."
    asked = highlighted = rng.choice(facts)
    if rng.random() < MISTAKES:
        highlighted = rng.choice([fact for fact in facts if fact != asked])
    opening = rng.choice(OPENINGS[domain]).format(draw_name(split, rng))
    instruction = rng.choice(INSTRUCTIONS[domain]).format(asked.split()[0])
    return Written(f"{opening}\n{note}\n{instruction}", marked(note, highlighted.split()[0]))


def marked(note: str, verb: str) -> str:
    """Returns the note with the number of one of its facts highlighted."""
    return re.sub(rf"( {verb} [a-z]+ )(\d+)", r"\1**\2**", note)


def read_prompt(prompt: str) -> tuple[str, str]:
    """Returns the note of a prompt, and the verb of the fact that is asked for."""
    _, note, instruction = prompt.split("\n")
    return note, instruction.removesuffix(".").split()[-1]


def score(messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]) -> Judgement:
    """Passes if the number asked for is highlighted, and nothing else; then the rest counts.

    Args:
      messages: The prompt.
      completion: The answer.
      metadata: Not read; every criterion is given it.
    """
    note, asked = read_prompt(messages[-1]["content"])
    right = marked(note, asked)
    found, wanted = (highlights(answer) for answer in (completion, right))
    passed = found == wanted
    said = f"highlights {found}, wanted is {wanted}"
    # The right number in a text that was changed is no answer to be learnt from.
    points = passed * (1.0 if completion == right else 0.2)
    return Judgement(passed=passed, score=points, explanation=said)


def highlights(text: str) -> list[str]:
    """Returns the highlights, each with the two words before it."""
    # With the words: two facts may have the same number, and only one of them was asked for.
    return re.findall(r"\S+ \S+ \*\*.*?\*\*", text)


def quality(prompt: str, completion: str) -> dict[str, float]:
    """Measures one completion."""
    note, _ = read_prompt(prompt)
    return {
        "text unchanged": float(completion.replace("**", "") == note),
        "exactly one highlight": float(bool(re.fullmatch(r"[^*]*\*\*[^*]+\*\*[^*]*", completion))),
    }


USE_CASE = UseCase(
    name="highlight",
    title="Highlight format",
    failure="wrong number highlighted",
    published=(17.3, 1.7),
    supervised_steps=800,
    write=write,
    criterion=f"{__name__}:score",
    quality=quality,
)
