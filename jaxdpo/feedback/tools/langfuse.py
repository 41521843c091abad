"""Langfuse: exported observations (or traces) and scores, in one file or several.

    {"id": "o1", "traceId": "t1", "type": "GENERATION", "input": [{"role": "user", …}],
     "output": {"role": "assistant", "content": "At 9."}, "model": "dpo"}
    {"id": "s1", "traceId": "t1", "observationId": "o1", "name": "helpful", "dataType": "BOOLEAN",
     "value": 1, "source": "ANNOTATION", "comment": "Right.", "authorUserId": "ann"}

A score belongs to its observation, or to the trace's only or last generation. Scores of `source`
EVAL are a model's own, and not read. BOOLEAN and NUMERIC scores are judgements, CATEGORICAL ones
where they say PASS or FAIL in some way; a CORRECTION is an expert's edit. Keys may be written as in
the API (`traceId`) or as in tables (`trace_id`).
"""

from collections.abc import Iterable
from typing import Any

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.feedback.preferences import NoPair
from jaxdpo.feedback.tools.answers import Row, reply_to
from jaxdpo.feedback.tools.tool import Tool
from jaxdpo.feedback.turns import Derived


class Langfuse(Tool):
    """Observations and the scores that people gave them."""

    def __init__(self) -> None:
        """Begins without lines."""
        # Scores and what they are about stand in different files, so all are read first.
        self._answers: dict[str, tuple[dict[str, Any], str]] = {}
        self._of_trace: dict[str, str] = {}
        self._scores: list[tuple[dict[str, Any], str]] = []

    def parse(self, record: dict[str, Any], where: str) -> list[Derived]:
        """Takes note of an observation, a trace or a score."""
        value = {_camel(key): item for key, item in record.items()}
        if "dataType" in value or ("name" in value and "value" in value and "input" not in value):
            self._scores.append((value, where))
            return []
        if "input" not in value or "output" not in value or "id" not in value:
            raise BadPair(
                "langfuse", "is neither a score (name, value, traceId) nor has id, input and output"
            )
        self._answers[value["id"]] = (value, where)
        # A trace has an input and an output of its own, as an observation has.
        trace = value.get("traceId") or value["id"]
        if value.get("type") in (None, "GENERATION") or trace not in self._of_trace:
            self._of_trace[trace] = value["id"]
        for score in value.get("scores") or ():
            self._scores.append(({"traceId": trace, **score}, where))
        return []

    def finish(self) -> Iterable[Derived | tuple[str, str]]:
        """Yields the records of all scores."""
        for score, where in self._scores:
            try:
                yield from self._derived(score, where)
            except NoPair as none:
                yield where, none.code

    def _derived(self, score: dict[str, Any], where: str) -> list[Derived]:
        if str(score.get("source", "")).upper() == "EVAL":
            raise NoPair("judged-by-a-model")
        name = score.get("observationId") or self._of_trace.get(str(score.get("traceId")))
        if name not in self._answers:
            raise NoPair("score-without-observation")
        answered, place = self._answers[name]
        about = {
            "annotator": score.get("authorUserId"),
            "time": score.get("timestamp") or score.get("createdAt"),
            "conversation": answered.get("sessionId") or answered.get("traceId"),
            "model": answered.get("model") or answered.get("providedModelName"),
            "notes": [score["comment"]] if score.get("comment") else None,
        }
        # One answer, under a name of our own: a score is about no other.
        row = Row(_asked(answered["input"]), {"output": _said(answered["output"])}, about, place)
        kind = str(score.get("dataType", "NUMERIC")).upper()
        if kind == "CORRECTION":
            edited = score.get("stringValue")
            return [row.record("expert_edits", output=row.answers["output"], edited=edited)]
        value = score.get("value")
        if kind == "BOOLEAN":
            # The API writes 1 and "True", tables sometimes only one of them.
            value = str(score.get("stringValue") or value).lower() in ("1", "1.0", "true")
        elif kind == "CATEGORICAL":
            value = str(score.get("stringValue") or value)
        return reply_to(row, str(score.get("name")), value)


def _camel(key: str) -> str:
    first, *rest = key.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _asked(given: Any) -> list[Any]:
    """Returns the messages of an input, in whichever way the integration wrote it."""
    if isinstance(given, dict):
        given = next((given[key] for key in ("messages", "input", "prompt") if key in given), None)
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    if isinstance(given, list) and given:
        return given
    raise NoPair("input-without-messages")


def _said(given: Any) -> Any:
    if isinstance(given, list) and given:
        given = given[-1]
    if isinstance(given, dict):
        if "role" in given:
            return given
        given = next(
            (given[k] for k in ("content", "output", "text", "answer") if k in given), None
        )
    if isinstance(given, str) and given:
        return given
    raise NoPair("output-without-text")
