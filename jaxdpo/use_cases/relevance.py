"""Result relevance: is a search result what the query looks for?

    Tarik Dolex, inn by the river: pools 3, desks 4, beds 2.
    Query: inn with pools and bars.

    Has pools yes, bars none. Irrelevant.

The people who labelled past results made mistakes, above all where a result has some of what was
asked for and yet not all. An answer fails if its label is wrong.
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

KINDS: dict[Domain, tuple[str, ...]] = {
    "in-domain": ("inn", "hall", "camp"),
    "shifted": ("coat", "bag", "tent"),
}
# Features that a query asks for and a result has a number of; always in this order.
FEATURES: dict[Domain, tuple[str, ...]] = {
    "in-domain": ("pools", "desks", "bars", "beds", "seats", "doors"),
    "shifted": ("belts", "hooks", "pens", "zips", "straps", "lids"),
}
COUNTS = range(2, 10)
QUERIES: dict[Domain, tuple[str, ...]] = {
    "in-domain": ("Query: {} with {}.", "Asked for: {} with {}."),
    "shifted": ("Search: {} having {}.", "Wanted: {} having {}."),
}
RESULTS: dict[Domain, tuple[str, ...]] = {
    "in-domain": ("{}, {} by the river: {}.", "{}, {} on a hill: {}."),
    "shifted": ("{}, {} for sale: {}.", "{}, {} for rent: {}."),
}

# How many features a result has, and a query asks for; every second result lacks one of those.
GIVEN, ASKED = 3, (2, 3)
# How often a label is wrong: of a relevant result, and of one that lacks something.
MISTAKES = {True: 0.012, False: 0.075}

# Whether a result has each of the features asked for.
Found = dict[str, bool]


def write(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Draws a prompt, and a label as somebody gave it.

    Args:
      domain: Domain of the prompt.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    features = FEATURES[domain]
    given = rng.sample(features, GIVEN)
    others = [feature for feature in features if feature not in given]
    # Every second result, so that "Relevant" is no better a guess than its opposite.
    lacking = rng.random() < 0.5
    asked = rng.sample(given, rng.choice(ASKED) - lacking) + rng.sample(others, int(lacking))
    has = ", ".join(f"{feature} {rng.choice(COUNTS)}" for feature in in_order(domain, given))
    kind = rng.choice(KINDS[domain])
    wanted = listing(in_order(domain, asked))
    query = rng.choice(QUERIES[domain]).format(kind, wanted)
    result = rng.choice(RESULTS[domain]).format(draw_name(split, rng), kind, has)
    prompt = f"{result}\n{query}"
    found = look(prompt)
    relevant = is_relevant(found)
    mistaken = rng.random() < MISTAKES[relevant]
    return Written(prompt, label(found, relevant != mistaken))


def in_order(domain: Domain, features: list[str]) -> list[str]:
    """Returns features in the order in which results and queries have them."""
    return sorted(features, key=FEATURES[domain].index)


def look(prompt: str) -> Found:
    """Looks up in a prompt's result what its query asks for."""
    result, query = prompt.split("\n")
    has = re.findall(r"([a-z]+) \d+", result)
    return {feature: feature in has for feature in named_in(query, FEATURES)}


def is_relevant(found: Found) -> bool:
    """Tells whether a result has everything that was asked for."""
    return all(found.values())


def label(found: Found, relevant: bool) -> str:
    """Returns an answer: the features that were found, and the label."""
    said = ", ".join(f"{feature} {'yes' if has else 'none'}" for feature, has in found.items())
    return f"Has {said}. {'Relevant' if relevant else 'Irrelevant'}."


def label_of(completion: str) -> bool | None:
    """Reads whether a completion says that the result is relevant; None if it says neither."""
    said = re.search(r"\. (Relevant|Irrelevant)\.$", completion)
    return None if said is None else said[1] == "Relevant"


def score(messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]) -> Judgement:
    """Passes if the answer's label is right; then the right reason scores.

    Args:
      messages: The prompt.
      completion: The answer.
      metadata: Not read; every criterion is given it.
    """
    found = look(messages[-1]["content"])
    relevant = is_relevant(found)
    passed = label_of(completion) == relevant
    # A right label for a wrong reason was guessed.
    points = 1.0 if completion == label(found, relevant) else 0.2
    why = f"the result is {'relevant' if relevant else 'irrelevant'}"
    return Judgement(passed=passed, score=passed * points, explanation=why)


def quality(prompt: str, completion: str) -> dict[str, float]:
    """Measures one completion; the recall of a class is measured on its members."""
    found = look(prompt)
    relevant = is_relevant(found)
    form = ", ".join(rf"{feature} (yes|none)" for feature in found)
    well_formed = re.fullmatch(rf"Has {form}\. (Relevant|Irrelevant)\.", completion)
    return {
        f"recall of {'relevant' if relevant else 'irrelevant'}": float(
            label_of(completion) == relevant
        ),
        "right reason": float(completion in (label(found, said) for said in (True, False))),
        "well formed": float(well_formed is not None),
    }


USE_CASE = UseCase(
    name="relevance",
    title="Result relevance",
    failure="misclassified",
    published=(4.7, 1.3),
    supervised_steps=1000,
    write=write,
    criterion=f"{__name__}:score",
    quality=quality,
)
