"""The quickstart's task: a museum guide's desk that answers from a short note, in few words.

A visitor's message holds the note, a question about some of its facts and a word limit:

    Tarik Dolex opens at 9, costs 14 euros, takes 2 hours and seats 60 guests.
    When does it open and how long does it take? Answer in at most 9 words.

The desk's past answers, written by `write_answer`, are right but imperfect: about half of them are
padded with courtesies and hedges, some name the museum where the limit leaves no room for it, and
some add a fact that nobody asked for. A model taught on them does the same; preferences between
its own answers, judged by `passes`, teach it to do better.

Museums of the TEST split are named in words that no TRAIN museum uses.
"""

import random
import re
from dataclasses import dataclass
from typing import Literal

Split = Literal["TRAIN", "TEST"]

# A museum's word is a start and an end: Balex, Dorik, Tazum.
STARTS = tuple(consonant + vowel for consonant in "BDGKLMPRTV" for vowel in "ao")
ENDS = tuple(consonant + rhyme for consonant in "lmrvz" for rhyme in ("ex", "ik", "um", "os"))


@dataclass(frozen=True)
class Kind:
    """A kind of fact. Its last word before the value is its alone, and every clause has three."""

    question: str
    clause: str
    values: range


KINDS = (
    Kind("when does it open", "opens at {}", range(7, 13)),
    Kind("when does it close", "closes by {}", range(15, 23)),
    Kind("what does it cost", "costs {} euros", range(4, 31)),
    Kind("how many paintings does it show", "shows {} paintings", range(30, 100, 2)),
    Kind("how long does it take", "takes {} hours", range(2, 7)),
    Kind("how many guests does it seat", "seats {} guests", range(20, 90, 5)),
)


@dataclass(frozen=True)
class Request:
    """What a visitor's message says.

    Attributes:
      name: The museum's name, two words.
      facts: The note: a value by kind, in the order of `KINDS`.
      asked: The kinds asked for, in that order.
      limit: Most words the answer may have.
    """

    name: str
    facts: dict[Kind, int]
    asked: tuple[Kind, ...]
    limit: int

    def prompt(self) -> str:
        question = listing([kind.question for kind in self.asked])
        return (
            f"{self.name} {self.stated(*self.facts)}.\n"
            f"{capitalised(question)}? Answer in at most {self.limit} words."
        )

    def stated(self, *kinds: Kind) -> str:
        return listing([kind.clause.format(self.facts[kind]) for kind in kinds])

    def long_answer(self) -> str:
        return f"{self.name} {self.stated(*self.asked)}."

    def short_answer(self) -> str:
        return f"{capitalised(self.stated(*self.asked))}."

    def fits(self, answer: str) -> bool:
        return len(answer.split()) <= self.limit


def listing(items: list[str]) -> str:
    """`"a"`, `"a and b"`, `"a, b and c"`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def read_request(prompt: str) -> Request:
    """Reads a visitor's message back: `read_request(request.prompt()) == request`."""
    note, question = prompt.split("\n")
    values = {kind: re.search(kind.clause.format(r"(\d+)"), note) for kind in KINDS}
    return Request(
        name=" ".join(note.split()[:2]),
        facts={kind: int(found[1]) for kind, found in values.items() if found},
        asked=tuple(kind for kind in KINDS if kind.question in question.lower()),
        limit=int(re.findall(r"at most (\d+) words", question)[0]),
    )


def passes(prompt: str, completion: str) -> bool:
    """Whether an answer states exactly the facts asked for, rightly, and within the word limit.

    Naming the museum is welcome where the limit leaves room for it; anything else in the answer, a
    courtesy, a hedge, another fact, makes it fail.
    """
    request = read_request(prompt)
    direct = completion in (request.long_answer(), request.short_answer())
    return direct and request.fits(completion)


def museum_words(split: Split) -> list[str]:
    """The words that name the split's museums: every syllable in TRAIN, no word in both splits."""
    held_out = split == "TEST"
    return [
        start + end
        for i, start in enumerate(STARTS)
        for j, end in enumerate(ENDS)
        if ((i + j) % 5 == 0) == held_out
    ]


def make_request(split: Split, rng: random.Random) -> Request:
    """A visitor's message; half of the limits leave no room for the museum's name."""
    noted = sorted(rng.sample(range(len(KINDS)), rng.randint(3, 5)))
    asked = sorted(rng.sample(noted, rng.randint(1, 3)))
    facts = {KINDS[i]: rng.choice(KINDS[i].values) for i in noted}
    request = Request(
        name=" ".join(rng.sample(museum_words(split), 2)),
        facts=facts,
        asked=tuple(KINDS[i] for i in asked),
        limit=0,
    )
    answer = request.short_answer() if rng.random() < 0.5 else request.long_answer()
    spare = rng.randint(0, 1) if answer == request.short_answer() else rng.randint(0, 3)
    return Request(request.name, facts, request.asked, len(answer.split()) + spare)


def write_answer(request: Request, rng: random.Random) -> str:
    """An answer as the desk wrote them in the past: right, and in about two of three cases poor."""
    asked = request.asked
    others = [kind for kind in request.facts if kind not in asked]
    chatty = rng.random() < 0.5
    if others and rng.random() < 0.25:
        extra = rng.choice(others)
        asked = tuple(kind for kind in KINDS if kind in (*asked, extra))
    answer = Request(request.name, request.facts, asked, request.limit)
    if chatty:
        return padded(answer, rng)
    careful = request.fits(answer.long_answer()) or rng.random() < 0.5
    if careful and not request.fits(answer.long_answer()):
        return answer.short_answer()
    return answer.long_answer() if rng.random() < 0.8 else answer.short_answer()


def padded(answer: Request, rng: random.Random) -> str:
    """The answer between courtesies."""
    opening = rng.choice(("Thank you for asking about", "Thank you for your interest in"))
    hedge = rng.choice(("", "I believe that ", "As far as I know, "))
    closing = rng.choice(("", " I hope this helps.", " Please ask if you need anything else."))
    return f"{opening} {answer.name}. {capitalised(hedge + answer.long_answer())}{closing}"
