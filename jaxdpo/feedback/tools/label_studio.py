"""Label Studio: tasks of its JSON export, with their annotations.

    {"id": 1, "data": {"prompt": "When?", "answer1": "At 8.", "answer2": "At 9."},
     "annotations": [{"completed_by": 3, "created_at": "2026-05-04T09:00:00Z", "result": [
       {"from_name": "pw", "to_name": "answer1,answer2", "type": "pairwise",
        "value": {"selected": "right"}}]}]}

`pairwise`, `choices`, `rating`, `ranker` and `textarea` are read. A cancelled annotation and
`predictions`, which are a model's, are not.
"""

from typing import Any

from jaxdpo.data.bad_pair import BadPair, kind
from jaxdpo.feedback.preferences import NoPair
from jaxdpo.feedback.tools.answers import Row, is_text_reply, reply_to, row_of
from jaxdpo.feedback.tools.tool import Tool
from jaxdpo.feedback.turns import Derived


class LabelStudio(Tool):
    """Tasks of a Label Studio project."""

    def parse(self, record: dict[str, Any], where: str) -> list[Derived]:
        """Returns the feedback of a task's annotations."""
        data, annotations = record.get("data"), record.get("annotations")
        if not isinstance(data, dict) or not isinstance(annotations, list):
            raise BadPair(
                "label-studio",
                f"data is {kind(data)}, annotations {kind(annotations)}; export the project as "
                "JSON, not as JSON-MIN",
            )
        found: list[Derived] = []
        reasons = ["not-annotated"]
        for annotation in annotations:
            # Label Studio keeps what was picked before a task was skipped.
            if annotation.get("was_cancelled"):
                reasons.append("skipped")
                continue
            results = [(r.get("from_name") or "", _value(r), r) for r in annotation["result"]]
            row = row_of(data, _about(record, annotation), where)
            row = row.with_notes([value for each in results if (value := _comment(row, *each))])
            for name, value, result in results:
                if _comment(row, name, value, result) and len(results) > 1:
                    continue
                try:
                    found += _replies(row, name, value, result)
                except NoPair as none:
                    reasons.append(none.code)
        if not found:
            raise NoPair(reasons[-1])
        return found


def _comment(row: Row, name: str, value: Any, result: dict[str, Any]) -> str | None:
    """Returns a text that was written or picked and is no judgement; None for any other reply."""
    # What a Pairwise picks is "left" or "right", which is text, too.
    texts = result.get("type") in ("textarea", "choices")
    return value if texts and is_text_reply(row, name, value) else None


def _about(record: dict[str, Any], annotation: dict[str, Any]) -> dict[str, Any]:
    who = annotation.get("completed_by")
    # An export with users in full has an object in the place of their number.
    who = who.get("email") or who.get("id") if isinstance(who, dict) else who
    return {
        "annotator": None if who is None else str(who),
        "time": annotation.get("created_at"),
        "also": {"label_studio": record["id"]} if record.get("id") is not None else None,
    }


def _value(result: dict[str, Any]) -> Any:
    """Returns what was picked or written, whatever the control that it was picked by."""
    value = result.get("value") or {}
    kind_of = result.get("type")
    if kind_of == "pairwise":
        return value.get("selected")
    if kind_of == "choices":
        choices = value.get("choices") or [None]
        return choices[0]
    if kind_of == "rating":
        return value.get("rating")
    if kind_of == "textarea":
        text = value.get("text")
        return "\n".join(text) if isinstance(text, list) else text
    if kind_of == "ranker":
        ranked = value.get("ranker")
        # Buckets by name, of which a plain ranking has one.
        lists = list(ranked.values()) if isinstance(ranked, dict) else [ranked]
        return lists[0] if lists else None
    return None


def _replies(row: Row, name: str, value: Any, result: dict[str, Any]) -> list[Derived]:
    targets = result.get("to_name") or ""
    # "answer1,answer2" where a control compares two, as its tag names them.
    named = targets if isinstance(targets, list) else [part.strip() for part in targets.split(",")]
    if result.get("type") == "pairwise":
        if value not in ("left", "right"):
            raise NoPair("tie")
        # The names are those of the page's elements, which need not be the data's.
        both = [each for each in named if each in row.answers] or list(row.answers)
        if len(both) != 2:
            raise NoPair(f"about which answers? {name}")
        outputs = [row.answers[each] for each in both]
        return [row.record("user_choice", outputs=outputs, selected=int(value == "right"))]
    return reply_to(row, name, value, named[0] if named else None)
