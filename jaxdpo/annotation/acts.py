"""Checks what the page sends and makes events of it.

The page says what was done; who did it and when is the server's to say.
"""

from datetime import UTC, datetime
from typing import Any

from jaxdpo.annotation.access import RefusedError
from jaxdpo.annotation.conversation import ACTS, ConversationTurn, Event, messages_after, turns_in
from jaxdpo.data.bad_pair import BadPair
from jaxdpo.feedback.events import KEYS, parse_event
from jaxdpo.feedback.store import FeedbackStore

# An edit that is saved is two acts, and undoing it two more; more at once is no person.
_MAX_ACTS = 20
_MAX_NAME = 300


def check_owner(conversation: Any, annotator: str) -> str:
    """Returns the name of a conversation if it is the annotator's own.

    Raises:
      RefusedError: If it is somebody else's, or no name.
    """
    if isinstance(conversation, str) and len(conversation) <= _MAX_NAME:
        # "chat/ann/…", "review/ann/…" or "match/ann/…": the name says whose it is.
        parts = conversation.split("/")
        if len(parts) >= 3 and parts[1] == annotator:
            return conversation
    raise RefusedError(403, "this conversation is somebody else's")


def ask(store: FeedbackStore, body: dict[str, Any], annotator: str) -> str:
    """Adds a user's message to a conversation and returns the conversation's name.

    Args:
      store: Where the conversation is kept.
      body: `id`, `conversation` and `text`.
      annotator: Who asks.

    Raises:
      RefusedError: If the last turn has no answer to go on with, or something is missing.
    """
    conversation = check_owner(body.get("conversation"), annotator)
    name, text = _name(body), body.get("text")
    if not isinstance(text, str) or not text.strip():
        raise RefusedError(400, "write a message first")
    turns = turns_in(store.events(conversation))
    if any(turn.prompt["id"] == name for turn in turns):
        # Sent again, since its answer was lost on the way.
        return conversation
    if turns and turns[-1].kept is None:
        raise RefusedError(409, "choose one of the answers first; the conversation goes on with it")
    # A prompt holds all that was said before, so that a turn can be read by itself.
    messages = [*messages_after(turns), {"role": "user", "content": text}]
    event = {"id": name, "event": "prompt", "messages": messages}
    store.append([_signed(event, conversation, annotator)])
    return conversation


def act(store: FeedbackStore, body: dict[str, Any], annotator: str) -> str:
    """Adds acts to a conversation, all or none, and returns the conversation's name.

    Args:
      store: Where the conversation is kept.
      body: `conversation`, and `events`, each with its `id`.
      annotator: Whose acts they are.

    Raises:
      RefusedError: If one is not an act, or is about an answer that is not there.
    """
    conversation = check_owner(body.get("conversation"), annotator)
    given = body.get("events")
    if not isinstance(given, list) or not 0 < len(given) <= _MAX_ACTS:
        raise RefusedError(400, f"events holds no list of 1 to {_MAX_ACTS} acts")
    turns = turns_in(store.events(conversation))
    if not turns:
        raise RefusedError(409, "there is no such conversation")
    by_expert = conversation.startswith("review/")
    store.append([_event(each, turns[-1], conversation, annotator, by_expert) for each in given])
    return conversation


def _event(
    given: Any, turn: ConversationTurn, conversation: str, annotator: str, by_expert: bool
) -> Event:
    if not isinstance(given, dict) or given.get("event") not in (*ACTS, "undo"):
        raise RefusedError(400, f"an act is one of {', '.join(ACTS)}, undo")
    _name(given)
    # The time and the annotator are no fields of the page: nobody acts for another, or yesterday.
    allowed = (*KEYS[given["event"]], "id", "event")
    if unknown := set(given) - set(allowed):
        raise RefusedError(400, f"{given['event']} has no {', '.join(sorted(unknown))}")
    event = _signed(given, conversation, annotator)
    event.pop("by", None)
    if by_expert and event["event"] == "edited":
        # Review is expert work: an edit there stands by itself, and needs nobody to accept it.
        event["by"] = "expert"
    if not isinstance(event.get("content", ""), str):
        raise RefusedError(400, "content is no text")
    try:
        parse_event({**event, "time": datetime.now(UTC).isoformat()}, "")
    except BadPair as bad:
        raise RefusedError(400, bad.reason) from None
    # Another tab may show an older turn, whose answers no act may be about any more.
    named = event.get("outputs") or ([event["output"]] if "output" in event else [])
    if not set(named) <= turn.state.outputs.keys():
        raise RefusedError(409, "this answer is not there any more; load the page again")
    return event


def _signed(event: Event, conversation: str, annotator: str) -> Event:
    return {**event, "conversation": conversation, "annotator": annotator}


def _name(body: dict[str, Any]) -> str:
    name = body.get("id")
    if not isinstance(name, str) or not 8 <= len(name) <= 100:
        raise RefusedError(400, "id is no name of 8 to 100 characters")
    return name
