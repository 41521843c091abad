"""Result relevance: whether a search result is what the query looks for.

    Query: somewhere to sleep in Tarik Dolex
    Result: Visit the hotel of Tarik Dolex on the market square.

    Asked for sleeping, found sleeping: relevant.

The people who labelled past results made mistakes, above all with kinds that are near each other:
somebody who looks for paintings was shown a bookshop. A completion fails if its label is wrong.
"""

import random
import re
from dataclasses import dataclass

from jaxdpo.evaluation.judgement import Example, Judgement
from jaxdpo.quickstart.task import Split
from jaxdpo.use_cases.names import draw_name
from jaxdpo.use_cases.task import Domain, UseCase, Written


@dataclass(frozen=True)
class Kind:
    """A kind of place: in a query's words, in a result's, and what it is for.

    Attributes:
      purpose: What it is for.
      wanted: How queries ask for it.
      offered: What results call it.
      near: The purpose of the kind that is easily taken for it.
    """

    purpose: str
    wanted: tuple[str, ...]
    offered: tuple[str, ...]
    near: str


KINDS: dict[Domain, tuple[Kind, ...]] = {
    "home": (
        Kind("sleeping", ("somewhere to sleep", "a bed for two"), ("hotel", "hostel"), "eating"),
        Kind("eating", ("fresh bread", "a hot lunch"), ("bakery", "inn"), "sleeping"),
        Kind("looking", ("old paintings", "an exhibition"), ("museum", "gallery"), "reading"),
        Kind("reading", ("novels to borrow", "a quiet desk"), ("library", "bookshop"), "looking"),
    ),
    "away": (
        Kind("healing", ("pain tablets", "cough medicine"), ("pharmacy", "clinic"), "training"),
        Kind("training", ("weight training", "a yoga class"), ("gym", "stadium"), "healing"),
        Kind("driving", ("new tyres", "car repairs"), ("garage", "workshop"), "flying"),
        Kind("flying", ("a plane ticket", "a balloon ride"), ("airport", "airfield"), "driving"),
    ),
}
QUERIES: dict[Domain, str] = {"home": "{} in {}", "away": "{} near {}"}
RESULTS: dict[Domain, tuple[str, ...]] = {
    "home": ("Visit the {} of {} on the market square.", "See the {} of {} in the old town."),
    "away": ("Find the {} of {} by the lake.", "Try the {} of {} behind the station."),
}

# How often a label is wrong: of a near kind, and of anything else.
MISTAKES = {True: 0.2, False: 0.02}


@dataclass(frozen=True)
class Case:
    """What a query looks for, and what its result is."""

    wanted: Kind
    offered: Kind

    @property
    def relevant(self) -> bool:
        return self.wanted == self.offered

    def answer(self, relevant: bool) -> str:
        reason = f"Asked for {self.wanted.purpose}, found {self.offered.purpose}"
        return f"{reason}: {'relevant' if relevant else 'not relevant'}."


def write(domain: Domain, split: Split, rng: random.Random) -> Written:
    """A prompt, and a label as somebody gave it."""
    wanted = offered = rng.choice(KINDS[domain])
    if rng.random() < 0.5:
        offered = rng.choice([kind for kind in KINDS[domain] if kind != wanted])
    case = Case(wanted, offered)
    place = draw_name(split, rng)
    query = QUERIES[domain].format(rng.choice(wanted.wanted), place)
    result = rng.choice(RESULTS[domain]).format(rng.choice(offered.offered), place)
    mistaken = rng.random() < MISTAKES[wanted.near == offered.purpose]
    return Written(f"Query: {query}\nResult: {result}", case.answer(case.relevant != mistaken))


def read_prompt(prompt: str) -> Case:
    """The query and the result of a prompt."""
    query, result = prompt.split("\n")
    kinds = [kind for of_domain in KINDS.values() for kind in of_domain]
    wanted = next(kind for kind in kinds if any(words in query for words in kind.wanted))
    called = result.split(" the ")[1].split()[0]
    return Case(wanted, next(kind for kind in kinds if called in kind.offered))


def label_of(completion: str) -> bool | None:
    """Whether a completion says that the result is relevant; None if it says neither."""
    found = re.search(": (not )?relevant.$", completion)
    return None if found is None else found[1] is None


def judge(example: Example) -> Judgement:
    """Passes if the completion's label is right; then the right reason scores."""
    case = read_prompt(example.messages[-1]["content"])
    passed = label_of(example.completion) == case.relevant
    said = f"the result is {'' if case.relevant else 'not '}relevant"
    reasoned = example.completion == case.answer(case.relevant)
    score = passed * (1.0 if reasoned else 0.2)
    return Judgement(passed=passed, score=score, explanation=said)


def quality(prompt: str, completion: str) -> dict[str, float]:
    """Measures of one completion; the recall of a class is measured on its members."""
    case = read_prompt(prompt)
    recall = "recall of relevant" if case.relevant else "recall of not relevant"
    return {
        recall: float(label_of(completion) == case.relevant),
        "well formed": float(completion in (case.answer(True), case.answer(False))),
    }


USE_CASE = UseCase(
    name="relevance",
    title="Result relevance",
    failure="misclassified",
    published=(4.7, 1.3),
    supervised_steps=600,
    write=write,
    judge=judge,
    quality=quality,
)
