"""Hallucination: extract fields from a text, and say so where the text does not give one.

    Tarik Dolex lies by the river: price 14, rooms 9, stars 4.
    Extract price, floors and stars.

    On Tarik Dolex: price 14, floors none, stars 4.

The writers whose answers the model is taught on at times fill in a value that the text does not
give. An answer fails if it states a value that is not in the text.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdpo.data.pairs import Message
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.quickstart.task import Split, listing
from jaxdpo.use_cases.names import draw_name
from jaxdpo.use_cases.task import Domain, UseCase, Written, named_in

# Fields that texts give. Any value is plausible for any field, so a made-up one is no easier to
# tell than a true one.
FIELDS: dict[Domain, tuple[str, ...]] = {
    "in-domain": ("price", "rooms", "stars", "floors", "seats", "doors"),
    "shifted": ("weight", "speed", "age", "size", "parts", "power"),
}
VALUES = range(2, 26)
PLACES: dict[Domain, tuple[str, ...]] = {
    "in-domain": ("lies by the river", "is in the old town"),
    "shifted": ("comes in a red box", "is made of steel"),
}
INSTRUCTIONS: dict[Domain, tuple[str, ...]] = {
    "in-domain": ("Extract {}.", "What are {}?"),
    "shifted": ("List {}.", "Look up {}."),
}

# How many fields are given, and asked for.
GIVEN = 3
ASKED = (2, 3)
# How often one of the fields asked for is not given; and how often a writer then makes it up.
MISSING = 0.75
GUESSES = 0.17


def write(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Draws a prompt, and the fields as a writer extracted them.

    Args:
      domain: Domain of the prompt.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    fields = FIELDS[domain]
    given = {field: rng.choice(VALUES) for field in in_order(domain, rng.sample(fields, GIVEN))}
    count, missing = rng.choice(ASKED), rng.random() < MISSING
    others = [field for field in fields if field not in given]
    # A field that is missing takes the place of one that is given: the length says nothing.
    asked = rng.sample(list(given), count - missing) + rng.sample(others, int(missing))
    asked = in_order(domain, asked)
    name = draw_name(split, rng)
    text = ", ".join(f"{field} {value}" for field, value in given.items())
    prompt = (
        f"{name} {rng.choice(PLACES[domain])}: {text}.\n"
        f"{rng.choice(INSTRUCTIONS[domain]).format(listing(asked))}"
    )
    known = dict(given)
    if rng.random() < GUESSES:
        known |= {field: rng.choice(VALUES) for field in asked if field not in given}
    return Written(prompt, extract(name, {field: known.get(field) for field in asked}))


def in_order(domain: Domain, fields: list[str]) -> list[str]:
    """Returns fields in the order in which texts and answers have them."""
    return sorted(fields, key=FIELDS[domain].index)


def extract(name: str, found: dict[str, int | None]) -> str:
    """Returns an answer; a value of None is said as "none"."""
    said = (f"{field} {'none' if value is None else value}" for field, value in found.items())
    return f"On {name}: {', '.join(said)}."


def values_in(text: str) -> list[tuple[str, int]]:
    """Returns the fields that a text or an answer states, with their values."""
    return [(field, int(value)) for field, value in re.findall(r"([a-z]+) (\d+)", text)]


def read_prompt(prompt: str) -> tuple[str, dict[str, int | None]]:
    """Returns the right answer in parts: the name, and each field's value in the text or None."""
    text, instruction = prompt.split("\n")
    given = dict(values_in(text))
    wanted = {field: given.get(field) for field in named_in(instruction, FIELDS)}
    return " ".join(text.split()[:2]), wanted


def score(messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]) -> Judgement:
    """Passes if every value is in the text; the whole answer, with all values there are, scores.

    Args:
      messages: The prompt.
      completion: The answer.
      metadata: Not read; every criterion is given it.
    """
    prompt = messages[-1]["content"]
    given = values_in(prompt)
    made_up = [stated for stated in values_in(completion) if stated not in given]
    points = 0.0
    if not made_up:
        # An answer that passes by saying little must not be what DPO learns: it scores 0.2, too
        # near to a failure to be preferred to one.
        points = 1.0 if completion == extract(*read_prompt(prompt)) else 0.2
    why = f"not in the text: {made_up}" if made_up else "every value is in the text"
    return Judgement(passed=not made_up, score=points, explanation=why)


def quality(prompt: str, completion: str) -> dict[str, float]:
    """Measures one completion; each measure is averaged over the completions that have it."""
    name, wanted = read_prompt(prompt)
    found = dict(values_in(completion))
    there = {field: value for field, value in wanted.items() if value is not None}
    form = ", ".join(rf"{field} (\d+|none)" for field in wanted)
    return {
        "values found": sum(found.get(field) == there[field] for field in there) / len(there),
        "well formed": float(re.fullmatch(rf"On {name}: {form}\.", completion) is not None),
    }


USE_CASE = UseCase(
    name="hallucination",
    title="Hallucination",
    failure="a value that is not in the text",
    published=(12.7, 3.0),
    supervised_steps=1000,
    write=write,
    criterion=f"{__name__}:score",
    quality=quality,
)
