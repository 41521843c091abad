"""Result relevance: whether a search result is what the query looks for.

    Query: style quiet, kind inn, in Tarik Dolex.
    Result: looks loud, called inn, by the river.

    So style quiet looks loud: other, kind inn called inn: same. Irrelevant.

The people who labelled past results made mistakes, above all where the result is of the right kind
and yet not as asked for. An answer fails if its label is wrong.
"""

import random
import re
from dataclasses import dataclass, replace

from jaxdpo.evaluation.judgement import Example, Judgement
from jaxdpo.quickstart.task import Split
from jaxdpo.use_cases.names import draw_name
from jaxdpo.use_cases.task import Domain, UseCase, Written

# What places and things are like, and what they are. To tell same from other is all that is hard
# here for a small model, which learns it pair by pair of words: so they are few.
TRAITS: dict[Domain, tuple[str, ...]] = {
    "home": ("quiet", "loud", "new"),
    "away": ("red", "blue", "big"),
}
KINDS: dict[Domain, tuple[str, ...]] = {
    "home": ("inn", "bar", "shop"),
    "away": ("coat", "hat", "bag"),
}
QUERIES: dict[Domain, tuple[str, ...]] = {
    "home": ("Query: {}, in {}.", "Query: {}, near {}."),
    "away": ("Search: {}, by {}.", "Search: {}, from {}."),
}
RESULTS: dict[Domain, tuple[str, ...]] = {
    "home": ("Result: {}, by the river.", "Result: {}, on a hill."),
    "away": ("Found: {}, for sale.", "Found: {}, for rent."),
}
# What stands before trait and kind. Answers have the same words before them, so that a small model
# soon learns to copy.
WANTED, OFFERED = ("style", "kind"), ("looks", "called")
# In what a result differs from what the query looks for: half of all results are relevant.
DIFFERS = ("", "", "kind", "trait")
# How often a label is wrong: of a result in which nothing differs, the kind, or the trait.
MISTAKES = {"": 0.02, "kind": 0.02, "trait": 0.14}

_TRAITS, _KINDS = ("|".join(sum(table.values(), ())) for table in (TRAITS, KINDS))
_THING = rf"\b({_TRAITS}), [a-z]+ ({_KINDS})\b"


@dataclass(frozen=True)
class Thing:
    """What a query looks for, or what its result is."""

    trait: str
    kind: str


def write(domain: Domain, split: Split, rng: random.Random) -> Written:
    """A prompt, and a label as somebody gave it."""
    wanted = Thing(rng.choice(TRAITS[domain]), rng.choice(KINDS[domain]))
    differs = rng.choice(DIFFERS)
    offered = differing(wanted, differs, domain, rng)
    query = rng.choice(QUERIES[domain]).format(text(WANTED, wanted), draw_name(split, rng))
    result = rng.choice(RESULTS[domain]).format(text(OFFERED, offered))
    relevant = (wanted == offered) != (rng.random() < MISTAKES[differs])
    return Written(f"{query}\n{result}", label(wanted, offered, relevant))


def differing(thing: Thing, respect: str, domain: Domain, rng: random.Random) -> Thing:
    """Another thing that differs in trait or kind, or the same."""
    words = {"trait": TRAITS, "kind": KINDS}
    if not respect:
        return thing
    others = [word for word in words[respect][domain] if word != getattr(thing, respect)]
    return replace(thing, **{respect: rng.choice(others)})


def text(before: tuple[str, str], thing: Thing) -> str:
    return f"{before[0]} {thing.trait}, {before[1]} {thing.kind}"


def label(wanted: Thing, offered: Thing, relevant: bool) -> str:
    """An answer: both compared in each respect, and the label."""
    pairs = ((wanted.trait, offered.trait), (wanted.kind, offered.kind))
    compared = (
        f"{asked} {a} {found} {b}: {'same' if a == b else 'other'}"
        for asked, found, (a, b) in zip(WANTED, OFFERED, pairs, strict=True)
    )
    return f"So {', '.join(compared)}. {'Relevant' if relevant else 'Irrelevant'}."


def read_prompt(prompt: str) -> tuple[Thing, Thing]:
    """What a prompt's query looks for, and what its result is."""
    wanted, offered = (Thing(trait, kind) for trait, kind in re.findall(_THING, prompt))
    return wanted, offered


def label_of(completion: str) -> bool | None:
    """Whether a completion says that the result is relevant; None if it says neither."""
    found = re.search(r"\. (Relevant|Irrelevant)\.$", completion)
    return None if found is None else found[1] == "Relevant"


def judge(example: Example) -> Judgement:
    """Passes if the answer's label is right; then the right reason scores."""
    wanted, offered = read_prompt(example.messages[-1]["content"])
    relevant = wanted == offered
    passed = label_of(example.completion) == relevant
    said = f"the result is {'relevant' if relevant else 'irrelevant'}"
    reasoned = example.completion == label(wanted, offered, relevant)
    return Judgement(passed=passed, score=passed * (1.0 if reasoned else 0.2), explanation=said)


def quality(prompt: str, completion: str) -> dict[str, float]:
    """Measures of one completion; the recall of a class is measured on its members."""
    wanted, offered = read_prompt(prompt)
    relevant = wanted == offered
    return {
        f"recall of {'relevant' if relevant else 'irrelevant'}": float(
            label_of(completion) == relevant
        ),
        "well formed": float(
            completion in (label(wanted, offered, said) for said in (True, False))
        ),
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
