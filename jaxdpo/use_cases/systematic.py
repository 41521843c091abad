"""The four tasks with writers who are wrong systematically, and in many places at once.

    Tarik Dolex has price, stars and beds.
    Fill in the form.

    price given, rooms 14, stars given, floors 9, seats none, doors 21, beds given, desks 3.

Each answer has eight places that are wrong nine times in ten. A supervised model learns that, the
best of its answers are still wrong in most places, and so is what is taught on them. DPO compares
two answers and learns the difference. `places` is the frame; the four tasks here say what a prompt
is and which places its answer has.

The eight places are about the same things in every answer, in one order, and the prompt says what
is right in each: so a tiny model learns the task in some hundred steps, copying nothing.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxdpo.data.pairs import Message
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.quickstart.task import Split, listing
from jaxdpo.use_cases.names import draw_name
from jaxdpo.use_cases.places import Place, judge_places, measure_places, write_places
from jaxdpo.use_cases.task import Domain, UseCase, Way, Written, named_in

# Eight things that answers are about, by domain, in this order; a shifted prompt has others, in
# another wording.
THINGS: dict[Domain, tuple[str, ...]] = {
    "in-domain": ("price", "rooms", "stars", "floors", "seats", "doors", "beds", "desks"),
    "shifted": ("weight", "speed", "age", "size", "parts", "power", "belts", "hooks"),
}
VALUES = range(2, 26)


def draw_things(domain: Domain, rng: random.Random) -> list[str]:
    """Draws two to six of the things, in order."""
    things = THINGS[domain]
    return sorted(rng.sample(things, rng.randint(2, 6)), key=things.index)


def things_of(prompt: str) -> tuple[tuple[str, ...], list[str]]:
    """Reads the eight things of a prompt's domain, and those that the prompt names."""
    named = named_in(prompt, THINGS)
    domain: Domain = "in-domain" if named[0] in THINGS["in-domain"] else "shifted"
    return THINGS[domain], named


def write_limits(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Draws a prompt that limits some notes to two words each, and the others to three.

    The writers overrun by a word.

    Args:
      domain: Domain of the prompt.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    asked = {
        "in-domain": "Note on {}: two words on {}, three on the others.",
        "shifted": "Offer of {}: at most two words for {}, and three for the rest.",
    }
    named = listing(draw_things(domain, rng))
    prompt = asked[domain].format(draw_name(split, rng), named)
    return write_places(prompt, limit_places(prompt), rng)


def limit_places(prompt: str) -> list[Place]:
    """Returns the places of an answer to a prompt of `write_limits`."""
    things, named = things_of(prompt)
    places = []
    for thing in things:
        forms = (f"{thing} good", f"{thing} very good", f"{thing} very very good")
        limit = 2 if thing in named else 3
        # Two words, three or four: those within the limit are right, the fullest first.
        right = tuple(form for form in reversed(forms) if len(form.split()) <= limit)
        places.append(Place(right, forms[limit - 1], f"{thing}( very){{0,2}} good"))
    return places


def write_highlights(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Draws a prompt that asks for some things to be highlighted; writers highlight the others.

    Args:
      domain: Domain of the prompt.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    asked = {"in-domain": "List {}. Highlight {}.", "shifted": "Features of {}: {} in bold."}
    named = listing(draw_things(domain, rng))
    prompt = asked[domain].format(draw_name(split, rng), named)
    return write_places(prompt, highlight_places(prompt), rng)


def highlight_places(prompt: str) -> list[Place]:
    """Returns the places of an answer to a prompt of `write_highlights`."""
    things, named = things_of(prompt)
    places = []
    for thing in things:
        plain, bold = f"the {thing}", f"the **{thing}**"
        right, wrong = (bold, plain) if thing in named else (plain, bold)
        places.append(Place((right,), wrong, rf"the ({thing}|\*\*{thing}\*\*)"))
    return places


def write_forms(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Draws a text that gives some fields of a form; writers make the others up.

    Of a field that is given they mostly say that it is not.

    Args:
      domain: Domain of the prompt.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    asked = {
        "in-domain": "{} has {}. Fill in the form.",
        "shifted": "Known of {}: {}. Complete the list.",
    }
    named = listing(draw_things(domain, rng))
    prompt = asked[domain].format(draw_name(split, rng), named)
    return write_places(prompt, form_places(prompt, rng), rng)


def form_places(prompt: str, rng: random.Random | None = None) -> list[Place]:
    """Returns the places of an answer to a prompt of `write_forms`.

    Args:
      prompt: The prompt.
      rng: Draws the values that writers make up; None if no wrong text is needed.
    """
    things, named = things_of(prompt)
    places = []
    for thing in things:
        made_up = 0 if rng is None else rng.choice(VALUES)
        given, form = thing in named, rf"{thing} (none|given|\d+)"
        right, wrong = (f"{thing} given", f"{thing} none")
        places.append(
            Place((right,), wrong, form) if given else Place((wrong,), f"{thing} {made_up}", form)
        )
    return places


def write_labels(domain: Domain, split: Split, rng: random.Random) -> Written:
    """Draws a query for some of eight things; writers label most of them wrongly.

    Args:
      domain: Domain of the prompt.
      split: "TRAIN" or "TEST": whose names it is about.
      rng: Makes the draws.
    """
    asked = {
        "in-domain": "Query of {}: {}. Label the results.",
        "shifted": "Search by {}: {}. Is it relevant?",
    }
    named = listing(draw_things(domain, rng))
    prompt = asked[domain].format(draw_name(split, rng), named)
    return write_places(prompt, label_places(prompt), rng)


def label_places(prompt: str) -> list[Place]:
    """Returns the places of an answer to a prompt of `write_labels`."""
    things, named = things_of(prompt)
    places = []
    for thing in things:
        right, wrong = ("yes", "no") if thing in named else ("no", "yes")
        places.append(Place((f"{thing} {right}",), f"{thing} {wrong}", f"{thing} (yes|no)"))
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
        supervised_steps=250,
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
