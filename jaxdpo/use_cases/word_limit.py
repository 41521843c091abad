"""Word limit: summarise a note with an explicit limit in the prompt.

    Three facts on Tarik Dolex, which lies by the river: opens at 9, costs only 14, takes about 2.
    Summarise in at most 14 words.

    On Tarik Dolex: opens at 9, costs only 14, takes about 2.

The writers whose summaries the model is taught on often overrun. A summary fails if it is longer
than the limit.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxdpo.data.pairs import Message
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.quickstart.task import Split
from jaxdpo.use_cases.names import draw_name
from jaxdpo.use_cases.task import Domain, UseCase, Written

# Kinds of facts: the words before the value, and the values. The second word is a fact's alone, a
# cue that stands before the value in the note and in the summary.
FACTS: dict[Domain, dict[str, range]] = {
    "in-domain": {
        "opens at": range(7, 13),
        "closes by": range(15, 23),
        "costs only": range(4, 20),
        "shows some": range(10, 22),
        "takes about": range(2, 7),
        "seats over": range(8, 20),
    },
    "shifted": {
        "weighs just": range(2, 14),
        "lasts for": range(3, 15),
        "holds nearly": range(8, 20),
        "ships within": range(2, 10),
        "sells from": range(10, 22),
        "needs merely": range(2, 13),
    },
}
PLACES: dict[Domain, tuple[str, ...]] = {
    "in-domain": (
        "lies by the river",
        "is in the old town",
        "stands on a hill",
        "is near the station",
    ),
    "shifted": ("comes in a red box", "is made of steel", "was sold out twice", "has a new design"),
}
INSTRUCTIONS: dict[Domain, tuple[str, ...]] = {
    "in-domain": ("Summarise in at most {} words.", "Sum up in no more than {} words."),
    "shifted": ("Write a summary of {} words or fewer.", "Keep the summary within {} words."),
}
CLOSINGS = ("I hope this helps.", "Ask me for more.")

# A summary that uses less of the limit could have said more: every note has a form that does.
LEAST_USED = 0.7
COUNTS = {2: "Two", 3: "Three"}

# How often a writer overruns.
OVERRUNS = 0.31

_FACT = r"[a-z]+ [a-z]+ \d+"


@dataclass(frozen=True)
class Note:
    """A note in parts.

    Attributes:
      name: What it is about.
      facts: Such as "opens at 9", in order.
    """

    name: str
    facts: tuple[str, ...]

    def forms(self) -> tuple[str, ...]:
        """Returns the summaries, from the shortest form to the longest; each holds every fact.

        The longest is over any limit, and all the others are right answers to some prompts. So no
        words that DPO is to keep are in rejected answers alone.
        """
        facts = f"{', '.join(self.facts)}."
        openings = ("Briefly:", f"On {self.name}:", f"The note on {self.name}:")
        long = f"The note on {self.name} says that it {facts}"
        endings = ("", f" {CLOSINGS[0]}", f" {' '.join(CLOSINGS)}")
        return (
            *(f"{opening} {facts}" for opening in openings),
            *(f"{long}{ending}" for ending in endings),
        )


def count_words(text: str) -> int:
    """Counts the words of a text, split at white space."""
    return len(text.split())


def draw_facts(domain: Domain, count: int, rng: random.Random) -> list[str]:
    """Draws facts such as "opens at 9", of different kinds, in the kinds' order.

    Args:
      domain: Domain of the facts.
      count: Number of facts.
      rng: Makes the draws.
    """
    kinds = list(FACTS[domain].items())
    drawn = sorted(rng.sample(range(len(kinds)), count))
    return [f"{kinds[number][0]} {rng.choice(kinds[number][1])}" for number in drawn]


def write(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Draws a prompt, and a summary as a writer wrote it.

    Args:
      domain: Domain of the prompt.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    stated = draw_facts(domain, rng.choice(tuple(COUNTS)), rng)
    note = Note(draw_name(split, rng), tuple(stated))
    forms = note.forms()
    fitting = rng.randrange(len(forms) - 1)
    # Now and then a word more than the form needs: a limit is met by fewer words, not by as many.
    limit = count_words(forms[fitting]) + rng.choice((0, 1))
    prompt = (
        f"{COUNTS[len(stated)]} facts on {note.name}, which {rng.choice(PLACES[domain])}: "
        f"{', '.join(stated)}.\n"
        f"{rng.choice(INSTRUCTIONS[domain]).format(limit)}"
    )
    written = fitting
    if rng.random() < OVERRUNS:
        written = rng.randrange(fitting + 1, len(forms))
    return Written(prompt, forms[written])


def read_prompt(prompt: str) -> tuple[Note, int]:
    """Reads the note and the limit of a prompt."""
    note, instruction = prompt.split("\n")
    name = note.split(" on ")[1].split(",")[0]
    limit = int(re.findall(r"\d+", instruction)[0])
    return Note(name, tuple(re.findall(_FACT, note))), limit


def score(messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]) -> Judgement:
    """Passes if the completion keeps to the limit; if it also uses it, more facts score more.

    Args:
      messages: The prompt.
      completion: The answer.
      metadata: Not read; every criterion is given it.
    """
    note, limit = read_prompt(messages[-1]["content"])
    words = count_words(completion)
    passed = words <= limit
    points = 0.2 * passed
    if passed and well_formed(note, completion):
        # One that leaves much of the room unused is no answer to be learnt from.
        points = kept(note, completion) if words >= LEAST_USED * limit else 0.4
    said = f"{words} words, at most {limit} were asked for"
    return Judgement(passed=passed, score=points, explanation=said)


def kept(note: Note, completion: str) -> float:
    """Computes the share of the facts that the completion states."""
    stated = re.findall(_FACT, completion.lower())
    return sum(fact in stated for fact in note.facts) / len(note.facts)


def well_formed(note: Note, completion: str) -> bool:
    """Tells whether the completion is one of the forms, whole, of facts of the note in order."""
    stated = tuple(re.findall(_FACT, completion.lower()))
    in_order = [fact for fact in note.facts if fact in stated]
    if not stated or list(stated) != in_order:
        return False
    return completion in Note(note.name, stated).forms()


def quality(prompt: str, completion: str) -> dict[str, float]:
    """Measures one completion; each measure is averaged over the completions that have it."""
    note, limit = read_prompt(prompt)
    return {
        "facts kept": kept(note, completion),
        "at least 70% of the limit": float(count_words(completion) >= LEAST_USED * limit),
        "well formed": float(well_formed(note, completion)),
    }


USE_CASE = UseCase(
    name="word_limit",
    title="Word limit",
    failure="longer than the limit",
    published=(31.0, 7.0),
    supervised_steps=800,
    write=write,
    criterion=f"{__name__}:score",
    quality=quality,
)
