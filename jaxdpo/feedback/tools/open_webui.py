"""Open WebUI: the feedback that its administrators export (Evaluations, Feedbacks, export).

    {"id": "…", "user_id": "…", "type": "rating", "created_at": 1777885200,
     "data": {"rating": 1, "model_id": "dpo", "sibling_model_ids": ["sft"], "comment": "…"},
     "meta": {"arena": true, "chat_id": "…", "message_id": "m3"},
     "snapshot": {"chat": {"chat": {"history": {"messages": {"m3": {"parentId": "m1", …}}}}}}}

A rating is a thumb for one message. Where other models answered beside it, a good one is a choice
as well, and a bad one of two is a choice of the other.
"""

from typing import Any

from jaxdpo.data.bad_pair import BadPair, show
from jaxdpo.feedback.preferences import NoPair
from jaxdpo.feedback.tools.tool import Tool
from jaxdpo.feedback.turns import Derived

_RATINGS = {"1": True, "-1": False}


class OpenWebUI(Tool):
    """Ratings of messages, each with a snapshot of its chat."""

    def parse(self, record: dict[str, Any], where: str) -> list[Derived]:
        """Returns the label of the rated message, and what was preferred by it."""
        data, meta = record.get("data"), record.get("meta")
        if not isinstance(data, dict) or not isinstance(meta, dict):
            raise BadPair("open-webui", "data or meta is missing; export the feedback, not chats")
        rating = str(data.get("rating"))
        if rating not in _RATINGS:
            raise NoPair("not-rated")
        messages = _messages(record)
        name = meta.get("message_id")
        if name not in messages:
            raise BadPair("open-webui", f"the snapshot lacks meta.message_id, {show(name)}")
        rated = messages[name]
        about = _about(record, data, meta)
        label = {"output": _said(rated), "label": _RATINGS[rating], "model": data.get("model_id")}
        found = [Derived("thumbs", {**about, "messages": _before(messages, rated), **label}, where)]
        beside = _beside(messages, rated, data)
        # A bad one among three says nothing about which of the other two is better.
        if beside and (_RATINGS[rating] or len(beside) == 1):
            outputs = [rated, *beside]
            choice = {
                "outputs": [_said(each) for each in outputs],
                "selected": 0 if _RATINGS[rating] else 1,
                "models": [each.get("model") for each in outputs],
            }
            prompt = {"messages": _before(messages, rated)}
            found.append(Derived("user_choice", {**about, **prompt, **choice}, where))
        return found


def _messages(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the snapshot's messages by name."""
    chat = (record.get("snapshot") or {}).get("chat") or {}
    chat = chat.get("chat") or chat
    found = (chat.get("history") or {}).get("messages") or {}
    if not found:
        # An older snapshot lists the shown ones alone; each follows the one before it.
        listed = chat.get("messages") or []
        before = [None, *(message.get("id") for message in listed)]
        found = {m.get("id"): {"parentId": p, **m} for m, p in zip(listed, before, strict=False)}
    if not found:
        raise BadPair("open-webui", "snapshot holds no messages; use Open WebUI 0.5 or newer")
    return found


def _before(messages: dict[str, Any], message: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the conversation before a message, from the first one on."""
    found: list[dict[str, Any]] = []
    # A damaged snapshot may have a message that is its own ancestor.
    seen = set()
    name = message.get("parentId")
    while name in messages and name not in seen:
        seen.add(name)
        parent = messages[name]
        found.insert(0, {"role": parent.get("role"), "content": _said(parent)})
        name = parent.get("parentId")
    return found


def _beside(
    messages: dict[str, Any], rated: dict[str, Any], data: dict[str, Any]
) -> list[dict[str, Any]]:
    """Returns the messages that other models answered beside the rated one."""
    models = data.get("sibling_model_ids") or []
    children = (messages.get(rated.get("parentId") or "") or {}).get("childrenIds") or []
    others = [messages[name] for name in children if name in messages]
    # An arena's messages bear the arena's name as their model, so that each sibling counts there.
    return [
        each
        for each in others
        if each is not rated and models and each.get("role") == "assistant" and _said(each)
    ]


def _said(message: dict[str, Any]) -> str:
    return str(message.get("content") or "")


def _about(record: dict[str, Any], data: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    given = [data.get("reason"), data.get("comment")]
    about = {
        "annotator": record.get("user_id"),
        "time": record.get("updated_at") or record.get("created_at"),
        "conversation": meta.get("chat_id"),
        "notes": [text for text in given if text] or None,
    }
    return {key: value for key, value in about.items() if value is not None}
