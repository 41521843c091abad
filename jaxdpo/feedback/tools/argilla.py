"""Argilla 2: records as `dataset.records.to_json` writes them.

    {"id": "r1", "fields": {"prompt": "When?", "response_1": "At 8.", "response_2": "At 9."},
     "responses": {"preference": [{"value": "response_2", "user_id": "…"}]}, "metadata": {}, …}

A ranking's value is a list of names, or of `{"value", "rank"}` as Argilla 1 had it. `suggestions`
are a model's, and not read.
"""

from typing import Any

from jaxdpo.data.bad_pair import BadPair, kind
from jaxdpo.feedback.preferences import NoPair
from jaxdpo.feedback.tools.answers import is_text_reply, reply_to, row_of
from jaxdpo.feedback.tools.tool import Tool
from jaxdpo.feedback.turns import Derived


class Argilla(Tool):
    """Records of an Argilla data set."""

    def parse(self, record: dict[str, Any], where: str) -> list[Derived]:
        """Returns the feedback of a record's responses, a person's after another's."""
        fields, responses = record.get("fields"), record.get("responses") or {}
        if not isinstance(fields, dict) or not isinstance(responses, dict):
            raise BadPair(
                "argilla",
                f"fields is {kind(fields)}; write a record as `dataset.records.to_json` does",
            )
        people: dict[Any, dict[str, Any]] = {}
        for question, given in responses.items():
            # Listed by question in the file; what belongs together is one person's.
            for each in given or ():
                people.setdefault(each.get("user_id"), {})[question] = each.get("value")
        if not people:
            raise NoPair("no-response")
        found: list[Derived] = []
        reasons: list[str] = []
        for person, replies in people.items():
            about = {
                "annotator": person,
                "metadata": record.get("metadata") or None,
                "also": {"argilla": record["id"]} if record.get("id") else None,
            }
            row = row_of(fields, about, where)
            # A comment belongs to whatever else the same person said of the record.
            comments = {q: text for q, text in replies.items() if is_text_reply(row, q, text)}
            row = row.with_notes(list(comments.values()))
            for question, value in replies.items():
                # Kept as a note already; by itself it is counted as not understood.
                if question in comments and len(replies) > 1:
                    continue
                try:
                    found += reply_to(row, question, value)
                except NoPair as none:
                    reasons.append(none.code)
        if not found:
            raise NoPair(reasons[0] if reasons else "no-response")
        return found
