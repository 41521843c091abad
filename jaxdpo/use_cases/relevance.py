"""Result relevance: whether a search result is what the query looks for.

    Query: inn with pools and bars near Tarik Dolex.
    Result: inn by the river: pools 3, desks 14, beds 2.

    It has pools 3, bars none. Irrelevant.

The people who labelled past results made mistakes, above all where a result has some of what was
asked for and yet not all. An answer fails if its label is wrong.
"""

import random
import re

from jaxdpo.evaluation.judgement import Example, Judgement
from jaxdpo.quickstart.task import Split, listing
from jaxdpo.use_cases.names import draw_name
from jaxdpo.use_cases.task import Domain, UseCase, Written

KINDS: dict[Domain, tuple[str, ...]] = {
    "home": ("inn", "hall", "camp"),
    "away": ("coat", "bag", "tent"),
}
# What a query asks for and a result has, so and so many of each; always in this order.
FEATURES: dict[Domain, tuple[str, ...]] = {
    "home": ("pools", "desks", "bars", "beds", "seats", "doors"),
    "away": ("belts", "hooks", "pens", "zips", "straps", "lids"),
}
COUNTS = range(2, 26)
QUERIES: dict[Domain, tuple[str, ...]] = {
    "home": ("Query: {} with {} near {}.", "Query: {} with {} in {}."),
    "away": ("Search: {} having {} by {}.", "Search: {} having {} from {}."),
}
RESULTS: dict[Domain, tuple[str, ...]] = {
    "home": ("Result: {} by the river: {}.", "Result: {} on a hill: {}."),
    "away": ("Found: {} for sale: {}.", "Found: {} for rent: {}."),
}

# How many features a result has, and a query asks for; half of all results lack one of these.
GIVEN, ASKED = 3, 2
# How often a label is wrong: of a relevant result, and of one that lacks something.
MISTAKES = {True: 0.018, False: 0.095}


# What was found of the features asked for: how many, None where there is none.
Found = dict[str, str | None]


def write(domain: Domain, split: Split, rng: random.Random) -> Written:
    """A prompt, and a label as somebody gave it."""
    features = FEATURES[domain]
    given = rng.sample(features, GIVEN)
    others = [feature for feature in features if feature not in given]
    lacking = rng.random() < 0.5
    asked = rng.sample(given, ASKED - lacking) + rng.sample(others, int(lacking))
    has = ", ".join(f"{feature} {rng.choice(COUNTS)}" for feature in in_order(domain, given))
    kind = rng.choice(KINDS[domain])
    wanted = listing(in_order(domain, asked))
    query = rng.choice(QUERIES[domain]).format(kind, wanted, draw_name(split, rng))
    prompt = f"{query}\n{rng.choice(RESULTS[domain]).format(kind, has)}"
    mistaken = rng.random() < MISTAKES[not lacking]
    return Written(prompt, label(look(prompt), mistaken == lacking))


def in_order(domain: Domain, features: list[str]) -> list[str]:
    return sorted(features, key=FEATURES[domain].index)


def look(prompt: str) -> Found:
    """Looks up in a prompt's result what its query asks for."""
    query, result = prompt.split("\n")
    has = dict(re.findall(r"([a-z]+) (\d+)", result))
    known = [feature for of_domain in FEATURES.values() for feature in of_domain]
    asked = [word for word in re.findall(r"[a-z]+", query) if word in known]
    return {feature: has.get(feature) for feature in asked}


def is_relevant(found: Found) -> bool:
    return None not in found.values()


def label(found: Found, relevant: bool) -> str:
    """An answer: what was found, and the label."""
    counted = ", ".join(f"{feature} {count or 'none'}" for feature, count in found.items())
    return f"It has {counted}. {'Relevant' if relevant else 'Irrelevant'}."


def label_of(completion: str) -> bool | None:
    """Whether a completion says that the result is relevant; None if it says neither."""
    said = re.search(r"\. (Relevant|Irrelevant)\.$", completion)
    return None if said is None else said[1] == "Relevant"


def judge(example: Example) -> Judgement:
    """Passes if the answer's label is right; then the right count of everything scores."""
    found = look(example.messages[-1]["content"])
    relevant = is_relevant(found)
    passed = label_of(example.completion) == relevant
    score = 1.0 if example.completion == label(found, relevant) else 0.2
    why = f"the result is {'relevant' if relevant else 'irrelevant'}"
    return Judgement(passed=passed, score=passed * score, explanation=why)


def quality(prompt: str, completion: str) -> dict[str, float]:
    """Measures of one completion; the recall of a class is measured on its members."""
    found = look(prompt)
    relevant = is_relevant(found)
    recall = f"recall of {'relevant' if relevant else 'irrelevant'}"
    form = ", ".join(rf"{feature} (\d+|none)" for feature in found)
    well_formed = re.fullmatch(rf"It has {form}\. (Relevant|Irrelevant)\.", completion)
    return {
        recall: float(label_of(completion) == relevant),
        "counts right": float(completion in (label(found, said) for said in (True, False))),
        "well formed": float(well_formed is not None),
    }


USE_CASE = UseCase(
    name="relevance",
    title="Result relevance",
    failure="misclassified",
    published=(4.7, 1.3),
    supervised_steps=1000,
    write=write,
    judge=judge,
    quality=quality,
)
