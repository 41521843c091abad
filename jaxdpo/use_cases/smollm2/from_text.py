"""Answers from a text alone, or else that it is not there."""

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxdpo.data.pairs import Message
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.use_cases.smollm2.quality import evades, repeats_itself
from jaxdpo.use_cases.smollm2.task import Asked, Split, Task, distinct, judged

# Any wording counts: the prompt gives one, and the model often finds another.
_REFUSAL = re.compile(
    r"\b(does not|doesn't|do not|don't|did not) (say|tell|mention|state|specify|provide|give)"
    r"|\bnot (in|mentioned|stated|given|said|specified)\b",
    re.IGNORECASE,
)
# "One short sentence" is asked for; the longest right one has about ten words.
_MOST_WORDS = 20


class Fact(NamedTuple):
    """A fact that a text may state.

    Attributes:
      states: The sentence, with {it} for the subject and {value}.
      asks: The question, with {it}.
      values: Values that it may have.
    """

    states: str
    asks: str
    values: tuple[str, ...]


def _numbers(values: range) -> tuple[str, ...]:
    return tuple(map(str, values))


_PEOPLE = ("Anna Reed", "Tom Hale", "Maria Lund", "Peter Voss", "Clara Finn", "Hugo Berg")
_TOWNS = ("Lyon", "Oslo", "Porto", "Graz", "Dover", "Turin", "Ghent", "Bergen")
# Subjects of a kind have the same facts, and those of a split are in no other.
KINDS: dict[str, tuple[Fact, ...]] = {
    "building": (
        Fact("{it} was built in {value}.", "When was {it} built?", _numbers(range(1810, 1999, 7))),
        Fact("{it} is {value} metres high.", "How high is {it}?", _numbers(range(11, 97, 6))),
        Fact("{it} was designed by {value}.", "Who designed {it}?", _PEOPLE),
        Fact("{it} stands in {value}.", "In which town is {it}?", _TOWNS),
    ),
    "person": (
        Fact("{it} is {value} years old.", "How old is {it}?", _numbers(range(23, 70, 5))),
        Fact("{it} lives in {value}.", "Where does {it} live?", _TOWNS),
        Fact(
            "{it} has {value} children.", "How many children does {it} have?", _numbers(range(2, 8))
        ),
        Fact("{it} works with {value}.", "Who works with {it}?", _PEOPLE),
    ),
    "event": (
        Fact("{it} begins at {value} o'clock.", "When does {it} begin?", _numbers(range(6, 12))),
        Fact("{it} costs {value} euros.", "What does {it} cost?", _numbers(range(14, 60, 4))),
        Fact("{it} takes place in {value}.", "Where does {it} take place?", _TOWNS),
        Fact("{it} was founded by {value}.", "Who founded {it}?", _PEOPLE),
    ),
}
SUBJECTS: dict[Split, dict[str, tuple[str, ...]]] = {
    "TRAIN": {
        "building": ("bridge", "church", "hotel", "tower", "station"),
        "person": ("baker", "farmer", "teacher", "nurse", "pilot"),
        "event": ("concert", "market", "race", "dinner", "exhibition"),
    },
    "VALIDATION": {
        "building": ("museum", "castle"),
        "person": ("doctor", "tailor"),
        "event": ("lecture", "festival"),
    },
    "TEST": {
        "building": ("theatre", "library", "lighthouse", "mill"),
        "person": ("painter", "sailor", "gardener", "lawyer"),
        "event": ("parade", "tournament", "opera", "fair"),
    },
}


def draw(split: Split, count: int, rng: random.Random) -> list[Asked]:
    """Draws texts of two facts with a question; every second one the text does not answer.

    Args:
      split: Whose subjects.
      count: Number of prompts.
      rng: Makes the draws.
    """
    # By turns, so that always refusing and never refusing are right in half of the prompts.
    stated = itertools.cycle((True, False))
    return distinct(count, lambda: _one(split, next(stated), rng))


def _one(split: Split, stated: bool, rng: random.Random) -> Asked:
    kind = rng.choice(sorted(KINDS))
    it = f"the {rng.choice(SUBJECTS[split][kind])}"
    # Two facts are stated; the third is of the same kind, so that its question could be answered by
    # a text like this one.
    first, second, third = rng.sample(KINDS[kind], 3)
    values = {fact: rng.choice(fact.values) for fact in (first, second)}
    text = " ".join(fact.states.format(it=it, value=value) for fact, value in values.items())
    text = re.sub(r"(^|\. )the", lambda each: f"{each[1]}The", text)
    question = rng.choice((first, second)) if stated else third
    prompt = (
        f"Text: {text}\nQuestion: {question.asks.format(it=it)}\nAnswer in one short sentence from "
        "the text alone. If the answer is not in the text, write: The text does not say."
    )
    return Asked(prompt, {"value": values.get(question)})


def judge(messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]) -> Judgement:
    """Passes the value that the text states, or the remark that it states none.

    Args:
      messages: The prompt; numbers that it does not hold are made up.
      completion: The answer.
      metadata: The value, None where the text has none.
    """
    value, text = metadata.get("value"), completion.strip()
    refuses = _REFUSAL.search(text) is not None
    # A number that is in no fact is the plainest kind of hallucination, and counting it needs no
    # judge. Where nothing is stated, every number is one.
    numbers = set(re.findall(r"\d+", text))
    known = set(re.findall(r"\d+", messages[-1]["content"]))
    if value is None:
        answered = {"says that the text does not say": refuses}
        known = set()
    else:
        answered = {f"says {value}": value in text, "does not refuse": not refuses}
    return judged(
        {
            **answered,
            "no number made up": numbers <= known,
            f"one line of at most {_MOST_WORDS} words": "\n" not in text
            and len(text.split()) <= _MOST_WORDS,
            "no repetition": not repeats_itself(text),
            "no evasion": not evades(text),
        }
    )


TASK = Task(
    name="from_text",
    title="Only from the text",
    asks="Text: The mill was built in 1880. … Who designed the mill? (The text does not say.)",
    criterion=f"{__name__}:judge",
    draw=draw,
    max_new_tokens=40,
)
