"""The four tasks with writers who are wrong systematically, and in many places at once.

    Note on Tarik Dolex: opens at 9, closes by 17, costs only 14, …
    Give each in at most 2 words.

    opens 9, closes by 17, costs only 14, …

Each answer has eight places that are wrong nine times in ten. A supervised model learns that, the
best of its answers are still wrong in most places, and so is what is taught on them. DPO compares
two answers and learns the difference. `places` is the frame; the four tasks here say what a prompt
is and which places its answer has.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxdpo.data.pairs import Message
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.quickstart.task import Split, listing
from jaxdpo.use_cases.names import draw_name
from jaxdpo.use_cases.places import Place, judge_places, measure_places, write_places
from jaxdpo.use_cases.task import Domain, UseCase, Way, Written

# Words of each task, by domain; a shifted prompt has other words in another wording. A fact's verb
# and its preposition are its alone: the cue for copying its value.
FACTS: dict[Domain, tuple[str, ...]] = {
    "in-domain": (
        "opens at",
        "closes by",
        "costs only",
        "shows some",
        "takes about",
        "seats over",
        "hosts near",
        "rents just",
        "lends all",
    ),
    "shifted": (
        "weighs merely",
        "lasts for",
        "holds nearly",
        "ships within",
        "sells from",
        "needs almost",
        "fits under",
        "spans around",
        "packs up",
    ),
}
FIELDS: dict[Domain, tuple[str, ...]] = {
    "in-domain": (
        "price", "rooms", "stars", "floors", "seats", "doors",
        "beds", "desks", "bars", "pools", "lifts", "gates",
    ),
    "shifted": (
        "weight", "speed", "age", "size", "parts", "power",
        "belts", "hooks", "pens", "zips", "straps", "lids",
    ),
}  # fmt: skip
VALUES = range(2, 26)

# Places that the writers may have wrong.
PLACES = 8
# Places of a form whose field the text gives: copied, and never wrong.
GIVEN = 2


def note_of(prompt: str) -> tuple[list[tuple[str, str, str]], str]:
    """Reads the facts of a note, as (verb, preposition, value), and its last line."""
    note, instruction = prompt.split("\n")
    return re.findall(r"([a-z]+) ([a-z]+) (\d+)", note.split(": ")[1]), instruction


def draw_note(domain: Domain, split: Split, rng: random.Random) -> tuple[str, list[str]]:
    """Draws a note of eight facts, and returns it with the facts' verbs.

    Args:
      domain: Domain of the facts.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    kinds = sorted(rng.sample(FACTS[domain], PLACES), key=FACTS[domain].index)
    facts = ", ".join(f"{kind} {rng.choice(VALUES)}" for kind in kinds)
    opening = "Note on" if domain == "in-domain" else "Offer of"
    return f"{opening} {draw_name(split, rng)}: {facts}.", [kind.split()[0] for kind in kinds]


def write_limits(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Draws a note with a word limit for each fact; writers overrun by a word.

    Args:
      domain: Domain of the prompt.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    note, _ = draw_note(domain, split, rng)
    limit = rng.choice((2, 3))
    asked = {
        "in-domain": f"Give each in at most {limit} words.",
        "shifted": f"Keep each within {limit} words.",
    }
    prompt = f"{note}\n{asked[domain]}"
    return write_places(prompt, limit_places(prompt), rng)


def limit_places(prompt: str) -> list[Place]:
    """Returns the places of an answer to a prompt of `write_limits`."""
    facts, instruction = note_of(prompt)
    limit = int(re.findall(r"\d+", instruction)[0])
    places = []
    for verb, preposition, value in facts:
        forms = (
            f"{verb} {value}",
            f"{verb} {preposition} {value}",
            f"{verb} {preposition} exactly {value}",
        )
        # Two words, three or four: those within the limit are right, the fullest first.
        right = tuple(form for form in reversed(forms) if len(form.split()) <= limit)
        form = rf"{verb}( {preposition}( exactly)?)? {value}"
        places.append(Place(right, forms[limit - 1], form))
    return places


def write_highlights(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Draws a note of which some facts are to be highlighted; writers highlight the others.

    Args:
      domain: Domain of the prompt.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    note, verbs = draw_note(domain, split, rng)
    asked = sorted(rng.sample(verbs, rng.choice((2, 3, 4))), key=verbs.index)
    verb = "Highlight" if domain == "in-domain" else "Show in bold"
    prompt = f"{note}\n{verb} {listing(asked)}."
    return write_places(prompt, highlight_places(prompt), rng)


def highlight_places(prompt: str) -> list[Place]:
    """Returns the places of an answer to a prompt of `write_highlights`."""
    facts, instruction = note_of(prompt)
    asked = re.findall(r"[a-z]+", instruction)
    places = []
    for verb, preposition, value in facts:
        plain, bold = f"{verb} {preposition} {value}", f"{verb} {preposition} **{value}**"
        right, wrong = (bold, plain) if verb in asked else (plain, bold)
        form = rf"{verb} {preposition} ({value}|\*\*{value}\*\*)"
        places.append(Place((right,), wrong, form))
    return places


def write_forms(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Draws a text that gives two of ten fields; writers make up most of the others.

    Args:
      domain: Domain of the prompt.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    fields = FIELDS[domain]
    # In the table's order in prompt and answer alike: a tiny model copies in order.
    asked = sorted(rng.sample(fields, GIVEN + PLACES), key=fields.index)
    given = sorted(rng.sample(asked, GIVEN), key=fields.index)
    text = ", ".join(f"{field} {rng.choice(VALUES)}" for field in given)
    verb = "Extract" if domain == "in-domain" else "Look up"
    prompt = f"{draw_name(split, rng)} has {text}.\n{verb} {listing(asked)}."
    return write_places(prompt, form_places(prompt, rng), rng)


def form_places(prompt: str, rng: random.Random | None = None) -> list[Place]:
    """Returns the places of an answer to a prompt of `write_forms`.

    Args:
      prompt: The prompt.
      rng: Draws the values that writers make up; None if no wrong text is needed.
    """
    text, instruction = prompt.split("\n")
    given = dict(re.findall(r"([a-z]+) (\d+)", text))
    known = {field for of_domain in FIELDS.values() for field in of_domain}
    places = []
    for field in (word for word in re.findall(r"[a-z]+", instruction) if word in known):
        if field in given:
            stated = f"{field} {given[field]}"
            places.append(Place((stated,), stated, stated))
            continue
        made_up = 0 if rng is None else rng.choice(VALUES)
        places.append(Place((f"{field} none",), f"{field} {made_up}", rf"{field} (none|\d+)"))
    return places


def write_labels(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Draws a query and eight results; writers label most of them wrongly.

    Args:
      domain: Domain of the prompt.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    fields = FIELDS[domain]
    found = sorted(rng.sample(fields, PLACES), key=fields.index)
    asked = sorted(rng.sample(found, rng.choice((2, 3, 4))), key=fields.index)
    query = "Query" if domain == "in-domain" else "Search"
    prompt = f"{query}: {draw_name(split, rng)} with {listing(asked)}.\nResults: {listing(found)}."
    return write_places(prompt, label_places(prompt), rng)


def label_places(prompt: str) -> list[Place]:
    """Returns the places of an answer to a prompt of `write_labels`."""
    query, results = prompt.split("\n")
    asked = re.findall(r"[a-z]+", query)
    known = {field for of_domain in FIELDS.values() for field in of_domain}
    places = []
    for field in (word for word in re.findall(r"[a-z]+", results) if word in known):
        right, wrong = ("yes", "no") if field in asked else ("no", "yes")
        places.append(Place((f"{field} {right}",), f"{field} {wrong}", rf"{field} (yes|no)"))
    return places


def _scorer(places: Callable[[str], list[Place]]) -> Callable[..., Judgement]:
    """Returns the criterion that judges an answer by the places of its prompt."""

    def score(
        messages: Sequence[Message], completion: str, metadata: Mapping[str, Any]
    ) -> Judgement:
        return judge_places(places(messages[-1]["content"]), completion)

    return score


# Named by `module:function` in the use cases, as criteria of one's own are.
score_limits = _scorer(limit_places)
score_highlights = _scorer(highlight_places)
score_forms = _scorer(form_places)
score_labels = _scorer(label_places)

# The same settings for all four tasks, chosen on validation prompts of one of them.
_WAYS = (
    Way("SFT on chosen", "chosen", "systematic_chosen"),
    Way("DPO", "dpo", "systematic_dpo"),
    Way("DPO and SFT", "mixed", "systematic_mixed"),
)


def _use_case(
    name: str,
    title: str,
    write: Callable[[Domain, Split, random.Random], Written],
    places: Callable[[str], list[Place]],
    published: tuple[float, float],
) -> UseCase:
    """Makes a use case of its prompts and its places.

    Args:
      name: Ending of the names of its functions here.
      title: Name for people.
      write: Draws a prompt and an answer.
      places: Returns the places of a prompt's answer.
      published: Failures of 100 before and after DPO, as published for such a task.
    """
    return UseCase(
        name=f"systematic_{name}",
        title=title,
        failure="a place of the answer is wrong",
        published=published,
        supervised_steps=400,
        write=write,
        criterion=f"{__name__}:score_{name}",
        quality=lambda prompt, completion: measure_places(places(prompt), completion),
        ways=_WAYS,
        supervised="systematic_sft",
        margin=None,
        best_of=16,
        # Texts in fixed order need no more.
        width=64,
    )


SYSTEMATIC = (
    _use_case("limits", "Word limit, systematic", write_limits, limit_places, (31.0, 7.0)),
    _use_case(
        "highlights",
        "Highlight format, systematic",
        write_highlights,
        highlight_places,
        (17.3, 1.7),
    ),
    _use_case("forms", "Hallucination, systematic", write_forms, form_places, (12.7, 3.0)),
    _use_case("labels", "Result relevance, systematic", write_labels, label_places, (4.7, 1.3)),
)
