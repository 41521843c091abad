"""Highlight format: give a sentence back with the right phrase between two stars on each side.

    Yesterday Tarik Dolex sold a red boat in Bamum Kalos.
    Highlight where.

    Yesterday Tarik Dolex sold a red boat in **Bamum Kalos**.

The writers often highlight a wrong phrase, most of all the person where the place is asked for:
both are names. A completion fails if it highlights anything but the phrase that was asked for.
"""

import random
import re
from dataclasses import dataclass

from jaxdpo.evaluation.judgement import Example, Judgement
from jaxdpo.use_cases.language import Split, capitalised, draw_name
from jaxdpo.use_cases.task import Domain, UseCase, Written

VERBS: dict[Domain, tuple[str, ...]] = {
    "home": ("sold", "painted", "found", "lent"),
    "away": ("repaired", "bought", "drew", "lost"),
}
THINGS: dict[Domain, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "home": (("red", "small", "old"), ("boat", "clock", "lamp")),
    "away": (("blue", "large", "new"), ("violin", "bicycle", "map")),
}
TIMES: dict[Domain, tuple[str, ...]] = {
    "home": ("yesterday", "on Monday", "last week", "in May"),
    "away": ("this morning", "on Friday", "last year", "in June"),
}
ORDERS: dict[Domain, tuple[str, ...]] = {
    "home": ("{when} {who} {verb} {what} in {where}.", "{who} {verb} {what} in {where} {when}."),
    "away": ("in {where} {who} {verb} {what} {when}.", "{when} in {where} {who} {verb} {what}."),
}
INSTRUCTIONS: dict[Domain, str] = {"home": "Highlight {}.", "away": "Mark {}."}
ASKED = ("who", "what", "where", "when")

# How often a writer highlights a wrong phrase, by what is asked for.
MISTAKES = {"who": 0.05, "what": 0.05, "where": 0.55, "when": 0.05}


@dataclass(frozen=True)
class Sentence:
    """A sentence in parts.

    Attributes:
      order: The places of the phrases.
      verb: What was done.
      phrases: By what they answer to.
    """

    order: str
    verb: str
    phrases: dict[str, str]

    def text(self, highlighted: str | None = None) -> str:
        """The sentence, with one of the phrases highlighted."""
        marked = {
            asked: f"**{phrase}**" if asked == highlighted else phrase
            for asked, phrase in self.phrases.items()
        }
        return self.order.format(verb=self.verb, **marked)


def write(domain: Domain, split: Split, rng: random.Random) -> Written:
    """A prompt, and the sentence as a writer highlighted it."""
    adjectives, nouns = THINGS[domain]
    phrases = {
        "who": draw_name(split, rng),
        "what": f"a {rng.choice(adjectives)} {rng.choice(nouns)}",
        "where": draw_name(split, rng),
        "when": rng.choice(TIMES[domain]),
    }
    order = rng.choice(ORDERS[domain])
    if order.startswith("{when}"):
        phrases["when"] = capitalised(phrases["when"])
    sentence = Sentence(capitalised(order), rng.choice(VERBS[domain]), phrases)
    asked = rng.choice(ASKED)
    prompt = f"{sentence.text()}\n{INSTRUCTIONS[domain].format(asked)}"
    highlighted = asked
    if rng.random() < MISTAKES[asked]:
        others = [other for other in ASKED if other != asked]
        highlighted = "who" if asked == "where" else rng.choice(others)
    return Written(prompt, sentence.text(highlighted))


def read_prompt(prompt: str) -> tuple[str, str]:
    """The sentence of a prompt, and the phrase of it that is asked for."""
    text, instruction = prompt.split("\n")
    name = "[A-Z][a-z]+ [A-Z][a-z]+"
    times = "|".join(time for domain in TIMES.values() for time in domain)
    where = re.findall(f"[Ii]n ({name})", text)[0]
    patterns = {
        "who": f"({name})(?= (?:{'|'.join(verb for verbs in VERBS.values() for verb in verbs)}) )",
        "what": r"(a [a-z]+ [a-z]+)(?= in |\.| this| on| last)",
        "when": f"(?i:({times}))",
        "where": re.escape(where),
    }
    asked = instruction.rstrip(".").split()[-1]
    found = re.search(patterns[asked], text)
    assert found is not None, prompt
    return text, found[0]


def judge(example: Example) -> Judgement:
    """Passes if the phrase that is asked for is highlighted, and nothing else."""
    prompt, completion = example.messages[-1]["content"], example.completion
    text, phrase = read_prompt(prompt)
    highlights = re.findall(r"\*\*(.*?)\*\*", completion)
    passed = highlights == [phrase]
    said = f"highlights {highlights}, asked for was {phrase!r}"
    unchanged = completion.replace("**", "") == text
    return Judgement(passed=passed, score=passed * (1.0 if unchanged else 0.2), explanation=said)


def quality(prompt: str, completion: str) -> dict[str, float]:
    """Measures of one completion."""
    text, _ = read_prompt(prompt)
    return {
        "text unchanged": float(completion.replace("**", "") == text),
        "exactly one highlight": float(bool(re.fullmatch(r"[^*]*\*\*[^*]+\*\*[^*]*", completion))),
    }


USE_CASE = UseCase(
    name="highlight",
    title="Highlight format",
    failure="wrong phrase highlighted",
    published=(17.3, 1.7),
    write=write,
    judge=judge,
    quality=quality,
)
