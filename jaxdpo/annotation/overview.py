"""Everything that a studio's folder holds, as the Data page shows it."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxdpo.data.pairs import PreferencePair
from jaxdpo.errors import UserError
from jaxdpo.evaluation.agreement import Estimate, share
from jaxdpo.evaluation.criteria.spec import Spec, criterion_named, label_of
from jaxdpo.evaluation.human_agreement import HumanAgreement, HumanJudgement, compare_with_people
from jaxdpo.evaluation.judgement import Example
from jaxdpo.feedback.collecting import Collected, collect
from jaxdpo.feedback.conflicts import annotator_of, comparisons
from jaxdpo.feedback.human_judgements import alignment_lines
from jaxdpo.inspection.texts import said

# Rows of a table on the page; the export has them all.
SHOWN = 200


@dataclass(frozen=True)
class Conflict:
    """Two answers that were preferred both ways."""

    prompt: str
    one: str
    other: str
    for_one: tuple[str, ...]
    for_other: tuple[str, ...]


@dataclass(frozen=True)
class Overview:
    """Everything that was gathered.

    Attributes:
      collected: Pairs, labels and judgements.
      by: Counts of pairs and labels, a table for each of source, person and day.
      conflicts: Contradictions between people.
      first_place: The share of choices that fell on the answer shown first.
      places: How many choices that share is of.
    """

    collected: Collected
    by: dict[str, list[tuple[str, int]]]
    conflicts: tuple[Conflict, ...]
    first_place: Estimate
    places: int


def overview_of(folder: str) -> Overview:
    """Collects a folder and counts what it holds.

    Raises:
      UserError: If it cannot be read.
    """
    collected = collect("events", folder)
    everything = [*collected.pairs, *collected.labelled]
    feedback = [pair.metadata["feedback"] for pair in everything]
    by = {
        "source": _counts(each["source"] for each in feedback),
        "person": _counts(str(each.get("annotator") or "unnamed") for each in feedback),
        "day": sorted(_counts(str(each.get("time", ""))[:10] for each in feedback)),
    }
    places = [each["places"] for each in feedback if "places" in each]
    # Chosen first: a share far from one half says that people pick a side, and not an answer.
    first = sum(min(both) == both[0] for both in places)
    return Overview(collected, by, _conflicts(folder), share(first, len(places)), len(places))


def _counts(names: Iterable[str]) -> list[tuple[str, int]]:
    return Counter(names).most_common()


def _conflicts(folder: str) -> tuple[Conflict, ...]:
    from jaxdpo.feedback.preferences import FeedbackConfig

    # With the contradicting pairs left in, which by default are gone.
    pairs = collect("events", folder, FeedbackConfig(conflicts="keep")).pairs
    found = []
    for sides in comparisons(pairs):
        if all(sides):
            first = pairs[sides[0][0]]
            people = [tuple(str(annotator_of(pairs[i]) or "unnamed") for i in side)
                      for side in sides]  # fmt: skip
            found.append(
                Conflict(
                    prompt_text(first), said(first.chosen), said(first.rejected),
                    people[0], people[1],
                )
            )  # fmt: skip
    return tuple(found)


def prompt_text(pair: PreferencePair) -> str:
    """Returns the last message of a pair's prompt."""
    return str(pair.prompt[-1].get("content") or "")


def where_from(pair: PreferencePair) -> str:
    """Says where a pair came from, in a line."""
    feedback: dict[str, Any] = pair.metadata["feedback"]
    who = feedback.get("annotator") or "unnamed"
    number = str(feedback["from"]).rpartition(":")[2]
    return f"{who}, {str(feedback.get('time', ''))[:16]}, event {number}"


def judge_agreements(criteria: Sequence[Spec], collected: Collected) -> list[HumanAgreement]:
    """Lets criteria judge the answers that people have judged by them.

    Args:
      criteria: The criteria; one that nobody has judged by yet is left out.
      collected: What people said.

    Raises:
      UserError: If a judge cannot be asked.
    """
    # A judge is compared under its label, which is the criterion's name on the page.
    found = []
    for spec in criteria:
        try:
            lines = alignment_lines(collected.judged, label_of(spec))
        except UserError:
            continue
        people = [_human(line) for line in lines]
        found.append(compare_with_people(criterion_named(spec), people))
    return found


def _human(line: dict[str, Any]) -> HumanJudgement:
    *prompt, answer = line["messages"]
    example = Example(
        prompt, answer.get("content") or "", line["metadata"], line.get("tools", ()),
        answer.get("tool_calls") or (),
    )  # fmt: skip
    passed = {"PASS": True, "FAIL": False}.get(line.get("judgement", ""))
    return HumanJudgement(example, passed, line.get("explanation", ""), "")


def median_length(pairs: Sequence[PreferencePair]) -> float:
    """Returns how much longer chosen answers are than rejected ones, in characters, at the median.

    People often prefer the longer answer; a model trained on such pairs learns length.
    """
    if not pairs:
        return 0.0
    return statistics.median(len(said(pair.chosen)) - len(said(pair.rejected)) for pair in pairs)
