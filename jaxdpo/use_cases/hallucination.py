"""Hallucination: extract values from a text, and say so where the text does not have one.

    Tarik Dolex opens at 9 and costs only 14.
    Tell what it costs, shows and opens.

    Costs only 14. Nothing on shows. Opens at 9.

The writers often fill in a value that the text does not have, most of all a price. A completion
fails if it states a value that is not in the text.
"""

import random
import re

from jaxdpo.evaluation.judgement import Example, Judgement
from jaxdpo.quickstart.task import Split, capitalised, listing
from jaxdpo.use_cases.names import draw_name
from jaxdpo.use_cases.task import Domain, UseCase, Written
from jaxdpo.use_cases.word_limit import FACTS, PLACES

INSTRUCTIONS: dict[Domain, str] = {"home": "Extract {}.", "away": "List {}."}

# How often a writer makes a missing value up: of each domain's third kind, and of any other.
GUESSES = {True: 0.55, False: 0.03}
GUESSED_KIND = 2


def write(domain: Domain, split: Split, rng: random.Random) -> Written:
    """A prompt, and the values as a writer extracted them."""
    cues = list(FACTS[domain])
    stated = sorted(rng.sample(range(len(cues)), 3))
    values = {cues[number]: rng.choice(FACTS[domain][cues[number]]) for number in stated}
    missing = [cue for cue in cues if cue not in values]
    asked = rng.sample(list(values), 2) + rng.sample(missing, 1)
    rng.shuffle(asked)
    text = listing([f"{cue} {value}" for cue, value in values.items()])
    prompt = (
        f"{draw_name(split, rng)} {rng.choice(PLACES[domain])}. It {text}.\n"
        f"{INSTRUCTIONS[domain].format(listing([cue.split()[0] for cue in asked]))}"
    )
    answers = []
    for cue in asked:
        known = cue in values
        if not known and rng.random() < GUESSES[cue == cues[GUESSED_KIND]]:
            values[cue] = rng.choice(FACTS[domain][cue])
        if cue in values:
            answers.append(f"{capitalised(cue)} {values[cue]}.")
        else:
            answers.append(f"Nothing on {cue.split()[0]}.")
    return Written(prompt, " ".join(answers))


def read_prompt(prompt: str) -> tuple[dict[str, str], list[str]]:
    """What the text states, value by cue, and the cues that are asked for, in their order."""
    text, instruction = prompt.split("\n")
    stated = dict(re.findall(r"([a-z]+ [a-z]+) (\d+)", text))
    full = {cue.split()[0]: cue for facts in FACTS.values() for cue in facts}
    asked = re.findall("|".join(full), instruction)
    return stated, [full[word] for word in asked]


def extracted(completion: str) -> dict[str, str]:
    """The values that a completion states, by cue."""
    return dict(re.findall(r"([a-z]+ [a-z]+) (\d+)", completion.lower()))


def judge(example: Example) -> Judgement:
    """Passes if every value is in the text; of those, more of the values asked for score more."""
    prompt, completion = example.messages[-1]["content"], example.completion
    stated, _ = read_prompt(prompt)
    made_up = {
        cue: value for cue, value in extracted(completion).items() if stated.get(cue) != value
    }
    said = f"not in the text: {made_up}" if made_up else "every value is in the text"
    measures = quality(prompt, completion)
    well_formed, found = measures["well formed"], measures["values found"]
    score = 0.0 if made_up else max(0.2, well_formed * found)
    return Judgement(passed=not made_up, score=score, explanation=said)


def quality(prompt: str, completion: str) -> dict[str, float]:
    """Measures of one completion."""
    stated, asked = read_prompt(prompt)
    found, wanted = extracted(completion), [cue for cue in asked if cue in stated]
    parts = [rf"({capitalised(cue)} \d+|Nothing on {cue.split()[0]})\." for cue in asked]
    return {
        "values found": sum(found.get(cue) == stated[cue] for cue in wanted) / len(wanted),
        "well formed": float(re.fullmatch(" ".join(parts), completion) is not None),
    }


USE_CASE = UseCase(
    name="hallucination",
    title="Hallucination",
    failure="a value that is not in the text",
    published=(12.7, 3.0),
    supervised_steps=350,
    write=write,
    judge=judge,
    quality=quality,
)
