"""The quickstart's task: a museum guide's desk that answers from a short note, in few words.

A visitor's message holds the note, a question about some of its facts and a word limit:

    Tarik Dolex opens at 9, costs 14 euros, takes 2 hours and seats 60 guests.
    When does it open and how long does it take? Answer in at most 9 words.

The desk's past answers, written by `write_answer`, are right but imperfect: about half of them are
padded with courtesies and hedges, some name the museum where the limit leaves no room for it, and
some add a fact that nobody asked for. A model taught on them does the same; preferences between
its own answers, judged by `score`, teach it to do better.

The museums of the TEST split are none of the TRAIN split's, and never in the past answers.
"""

import random
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxdpo.data.pairs import Message
from jaxdpo.evaluation.judgement import Judgement

Split = Literal["TRAIN", "TEST"]

# A museum's word is a start and an end: Balex, Dorik, Tazum. Every part is in TRAIN, and TEST has
# other combinations of them: so a name is copied, and not remembered.
STARTS = tuple(consonant + vowel for consonant in "BDGKLMPRTV" for vowel in "ao")
ENDS = tuple(consonant + rhyme for consonant in "lmrvz" for rhyme in ("ex", "ik", "um", "os"))
SYLLABLES = (*STARTS, *(f" {start}" for start in STARTS), *ENDS)


@dataclass(frozen=True)
class Kind:
    """A kind of fact. Its last word before the value is its alone, and every clause has three.

    The word that is its alone is a cue for copying the value from the note to the answer.
    """

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
    """A visitor's message in parts.

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
        """Returns the message."""
        question = listing([kind.question for kind in self.asked])
        return (
            f"{self.name} {self.stated(*self.facts)}.\n"
            f"{capitalised(question)}? Answer in at most {self.limit} words."
        )

    def stated(self, *kinds: Kind) -> str:
        """Returns the clauses of facts of some kinds."""
        return listing([kind.clause.format(self.facts[kind]) for kind in kinds])

    def long_answer(self) -> str:
        """Returns the right answer that names the museum."""
        return f"{self.name} {self.stated(*self.asked)}."

    def short_answer(self) -> str:
        """Returns the right answer without the name."""
        return f"{capitalised(self.stated(*self.asked))}."

    def fits(self, answer: str) -> bool:
        """Tells whether an answer keeps to the word limit."""
        return len(answer.split()) <= self.limit


def listing(items: list[str]) -> str:
    """Joins items as English does: `"a"`, `"a and b"`, `"a, b and c"`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def capitalised(text: str) -> str:
    """Returns a text with its first letter as a capital, the others as they are."""
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
    """Tells whether an answer states exactly the facts asked for, rightly, within the word limit.

    Naming the museum is welcome where the limit leaves room for it; anything else in the answer, a
    courtesy, a hedge, another fact, makes it fail.
    """
    request = read_request(prompt)
    direct = completion in (request.long_answer(), request.short_answer())
    return direct and request.fits(completion)


def score(messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]) -> Judgement:
    """Passes an answer by `passes`, and scores one that names the museum above one that does not.

    Args:
      messages: A visitor's message.
      completion: The answer.
      metadata: Not read; every criterion is given it.
    """
    prompt = messages[-1]["content"]
    passed = passes(prompt, completion)
    # Of two good answers the longer is preferred, so that brevity beyond the limit is not what is
    # learnt: otherwise every chosen answer would be the shorter one.
    named = completion == read_request(prompt).long_answer()
    said = "right, and within the limit" if passed else "not just what was asked for"
    return Judgement(passed=passed, score=passed * (1.0 if named else 0.9), explanation=said)


def museum_name(split: Split, rng: random.Random) -> str:
    """Draws two words at random; a fifth of all names is TEST's alone, though not their words."""
    while True:
        words = [rng.choice(STARTS) + rng.choice(ENDS) for _ in range(2)]
        if split_of(name := " ".join(words)) == split:
            return name


def split_of(name: str) -> Split:
    """Returns the split that a name belongs to, by its hash."""
    # Python's own hash differs from process to process.
    return "TEST" if zlib.crc32(name.encode()) % 5 == 0 else "TRAIN"


def make_request(split: Split, rng: random.Random) -> Request:
    """Draws a visitor's message; the limit is the length of the long or of the short answer."""
    noted = sorted(rng.sample(range(len(KINDS)), rng.randint(3, 4)))
    asked = sorted(rng.sample(noted, rng.randint(1, 2)))
    request = Request(
        name=museum_name(split, rng),
        facts={KINDS[i]: rng.choice(KINDS[i].values) for i in noted},
        asked=tuple(KINDS[i] for i in asked),
        limit=0,
    )
    # Either of the two is the longest that passes, so half of the requests leave room for the name.
    answer = rng.choice((request.short_answer(), request.long_answer()))
    return replace(request, limit=len(answer.split()))


def write_answer(request: Request, rng: random.Random) -> str:
    """Writes an answer as the desk did: right, and in about two of three cases poor."""
    # Three in ten overrun where the limit leaves no room for the name.
    named = request.fits(request.long_answer()) or rng.random() < 0.3
    # One in five states a fact that nobody asked for.
    if rng.random() < 0.2:
        extra = rng.choice([kind for kind in request.facts if kind not in request.asked])
        asked = tuple(kind for kind in KINDS if kind in (*request.asked, extra))
        request = replace(request, asked=asked)
    if rng.random() < 0.5:
        return padded(request, rng)
    return request.long_answer() if named else request.short_answer()


def padded(request: Request, rng: random.Random) -> str:
    """Returns the long answer between courtesies."""
    opening = rng.choice(("Thank you for asking about", "Thank you for your interest in"))
    hedge = rng.choice(("", "I believe that ", "As far as I know, "))
    closing = rng.choice(("", " I hope this helps.", " Please ask if you need anything else."))
    return f"{opening} {request.name}. {hedge}{request.long_answer()}{closing}"


def sample_texts(rng: random.Random) -> list[str]:
    """Returns requests and past answers without names, for a tokenizer to be trained on."""
    texts = []
    for request in (make_request("TRAIN", rng) for _ in range(500)):
        nameless = replace(request, name="")
        texts += [nameless.prompt().strip(), write_answer(nameless, rng).strip()]
    return texts
