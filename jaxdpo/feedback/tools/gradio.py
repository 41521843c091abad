"""Gradio: `log.csv` of a chat interface with `flagging_mode="manual"`.

    conversation,index,value,flag,timestamp
    "[{""role"": ""user"", …}, …]",1,Like,2026-05-04 09:00:00

Gradio writes five names and four cells: the reaction stands under `value`, the time under `flag`.
"""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxdpo.data.bad_pair import BadLine, BadPair, show
from jaxdpo.data.reading.jsonl import Record
from jaxdpo.errors import UserError
from jaxdpo.feedback.preferences import NoPair
from jaxdpo.feedback.tools.tool import Tool
from jaxdpo.feedback.turns import Derived

_LABELS = {"Like": True, "Dislike": False}
_NAMES = ["conversation", "index", "value", "timestamp"]


class Gradio(Tool):
    """Reactions to messages of a chat."""

    def records(self, path: str) -> Iterable[Record | BadLine]:
        """Yields the rows of a `log.csv`; of another file its records."""
        if not path.endswith(".csv"):
            yield from super().records(path)
            return
        try:
            with open(Path(path).expanduser(), newline="", encoding="utf-8-sig") as file:
                rows = csv.reader(file)
                # By hand: the table's own reader refuses rows with fewer cells than names.
                for cells in rows:
                    if cells and cells[0] != "conversation":
                        # A row of five cells has the flag in a cell of its own.
                        names = _NAMES if len(cells) == 4 else [*_NAMES[:3], "flag", "timestamp"]
                        value = dict(zip(names, cells, strict=False))
                        yield Record(rows.line_num, value, json.dumps(cells).encode())
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: cannot be read: {error}") from error

    def parse(self, record: dict[str, Any], where: str) -> list[Derived]:
        """Returns the label of the message that was reacted to."""
        messages = record.get("conversation")
        if isinstance(messages, str):
            try:
                # Gradio writes an apostrophe before what a spreadsheet could take for a formula;
                # older versions did so where a text within the JSON holds ",-" or the like.
                messages = json.loads(messages.removeprefix("'"))
            except ValueError:
                messages = None
        if not isinstance(messages, list) or not messages:
            raise BadPair(
                "gradio", "conversation holds no messages; only a chat interface's log has them"
            )
        # Any label may be offered beside thumbs, such as "Spam"; none but these two is a judgement.
        reaction = record.get("value") or record.get("flag")
        if reaction not in _LABELS:
            raise NoPair(f"flag: {reaction}")
        messages = _flat(messages)
        at = _index(record.get("index"))
        if at is None or not 0 < at < len(messages) or messages[at].get("role") != "assistant":
            raise BadPair("gradio", f"index is {show(record.get('index'))}, which is no answer")
        known = {key: record[key] for key in ("username", "timestamp") if record.get(key)}
        return [
            Derived(
                "thumbs",
                {
                    "messages": [_message(each) for each in messages[:at]],
                    "output": _text(messages[at].get("content")),
                    "label": _LABELS[reaction],
                    **({"annotator": known["username"]} if "username" in known else {}),
                    **({"time": known["timestamp"]} if "timestamp" in known else {}),
                },
                where,
            )
        ]


def _flat(messages: list[Any]) -> list[dict[str, Any]]:
    """Returns messages with roles; older chats had pairs of question and answer."""
    flat: list[dict[str, Any]] = []
    for each in messages:
        if isinstance(each, dict):
            flat.append(each)
        elif isinstance(each, list) and len(each) == 2:
            roles = zip(("user", "assistant"), each, strict=True)
            flat += [{"role": role, "content": content} for role, content in roles]
        else:
            raise BadPair("gradio", f"a message is {show(each)}")
    return flat


def _index(given: Any) -> int | None:
    """Returns a message's place; of `[turn, side]`, the form of older chats, as well."""
    try:
        place = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return None
    if isinstance(place, list) and len(place) == 2:
        place = 2 * place[0] + place[1]
    return place if type(place) is int else None


def _message(message: dict[str, Any]) -> dict[str, Any]:
    return {"role": message.get("role"), "content": _text(message.get("content"))}


def _text(content: Any) -> str:
    """Returns the text of a message: Gradio 6 has a list of parts, of which texts are read."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise BadPair("gradio", f"a message holds {show(content)}; only texts can be learnt")
    return "\n".join(part["text"] for part in parts)
