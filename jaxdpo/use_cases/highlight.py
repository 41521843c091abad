"""Highlight format: give a note back with what was asked for between two stars on each side.

    Note on Tarik Dolex: opens at 9, costs only 14, takes about 2.
    Highlight what it costs.

    On Tarik Dolex: opens at 9, **costs only 14**, takes about 2.

The writers often highlight something else, most of all where a number of minor interest is asked
for. A completion fails if it highlights anything but what was asked for.
"""

import random
import re

from jaxdpo.evaluation.judgement import Example, Judgement
from jaxdpo.quickstart.task import Split
from jaxdpo.use_cases.names import draw_name
from jaxdpo.use_cases.task import Domain, UseCase, Written
from jaxdpo.use_cases.word_limit import FACTS, draw_facts

INSTRUCTIONS: dict[Domain, str] = {
    "home": "Highlight what it {}.",
    "away": "Put stars round what it {}.",
}

# How often a writer highlights something else: for the last two kinds of facts, and for others.
MISTAKES = {True: 0.45, False: 0.05}


def write(domain: Domain, split: Split, rng: random.Random) -> Written:
    """A prompt, and the note as a writer highlighted it."""
    facts = draw_facts(domain, 3, rng)
    name, asked = draw_name(split, rng), rng.choice(facts)
    prompt = f"Note on {name}: {', '.join(facts)}.\n{INSTRUCTIONS[domain].format(asked.split()[0])}"
    minor = any(asked.startswith(cue) for cue in list(FACTS[domain])[-2:])
    highlighted = asked
    if rng.random() < MISTAKES[minor]:
        highlighted = rng.choice([fact for fact in facts if fact != asked])
    return Written(prompt, marked(name, facts, highlighted))


def marked(name: str, facts: list[str], highlighted: str | None = None) -> str:
    """The note, with one of the facts highlighted."""
    shown = (f"**{fact}**" if fact == highlighted else fact for fact in facts)
    return f"On {name}: {', '.join(shown)}."


def read_prompt(prompt: str) -> tuple[str, list[str], str]:
    """The name and the facts of a prompt, and the fact that is asked for."""
    note, instruction = prompt.split("\n")
    name, facts = note.removeprefix("Note on ").removesuffix(".").split(": ")
    asked = instruction.removesuffix(".").split()[-1]
    separate = facts.split(", ")
    return name, separate, next(fact for fact in separate if fact.startswith(asked))


def judge(example: Example) -> Judgement:
    """Passes if what was asked for is highlighted, and nothing else; then the rest counts."""
    name, facts, asked = read_prompt(example.messages[-1]["content"])
    highlights = re.findall(r"\*\*(.*?)\*\*", example.completion)
    passed = highlights == [asked]
    said = f"highlights {highlights}, asked for was {asked!r}"
    whole = example.completion == marked(name, facts, asked)
    return Judgement(passed=passed, score=passed * (1.0 if whole else 0.2), explanation=said)


def quality(prompt: str, completion: str) -> dict[str, float]:
    """Measures of one completion."""
    name, facts, _ = read_prompt(prompt)
    return {
        "text unchanged": float(completion.replace("**", "") == marked(name, facts)),
        "exactly one highlight": float(bool(re.fullmatch(r"[^*]*\*\*[^*]+\*\*[^*]*", completion))),
    }


USE_CASE = UseCase(
    name="highlight",
    title="Highlight format",
    failure="wrong phrase highlighted",
    published=(17.3, 1.7),
    supervised_steps=500,
    write=write,
    judge=judge,
    quality=quality,
)
