"""Chainlit: threads as its data layers return them (`ThreadDict`), one a line or in an array.

    {"id": "t1", "userIdentifier": "ann", "steps": [
      {"type": "user_message", "output": "When?", "createdAt": "2026-05-04T09:00:00Z"},
      {"type": "assistant_message", "output": "At 9.", "createdAt": "…",
       "feedback": {"value": 1, "comment": "Right."}}]}

`value` is 1 for a thumb up and 0 for one down.
"""

from typing import Any

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.feedback.preferences import NoPair
from jaxdpo.feedback.tools.tool import Tool
from jaxdpo.feedback.turns import Derived

_ROLES = {"user_message": "user", "assistant_message": "assistant", "system_message": "system"}


class Chainlit(Tool):
    """Threads with their steps and feedback."""

    def parse(self, record: dict[str, Any], where: str) -> list[Derived]:
        """Returns a label for each message that has feedback."""
        steps = record.get("steps")
        if not isinstance(steps, list):
            raise BadPair(
                "chainlit", f"steps is {kind(steps)}; write a thread as `get_thread` returns it"
            )
        found: list[Derived] = []
        messages: list[dict[str, Any]] = []
        # Steps of tools and chains stand between the messages, and are no part of what is said.
        said = [step for step in steps if step.get("type") in _ROLES]
        for step in sorted(said, key=lambda step: step.get("createdAt") or ""):
            role, feedback = _ROLES[step["type"]], step.get("feedback")
            if role == "assistant" and feedback and feedback.get("value") is not None:
                # Earlier versions wrote -1 for a thumb down, which would read as a thumb up.
                if feedback["value"] not in (0, 1):
                    raise BadPair("chainlit", f"feedback.value is {show(feedback['value'])}")
                label = {"output": step.get("output"), "label": feedback["value"] == 1}
                about = _about(record, step, feedback)
                found.append(Derived("thumbs", {"messages": [*messages], **label, **about}, where))
            # Chainlit's system messages are notices to the user, which the model never sees.
            if role != "system" and step.get("output"):
                messages.append({"role": role, "content": step["output"]})
        if not found:
            raise NoPair("not-rated")
        return found


def _about(
    record: dict[str, Any], step: dict[str, Any], feedback: dict[str, Any]
) -> dict[str, Any]:
    about = {
        "annotator": record.get("userIdentifier") or record.get("userId"),
        "time": step.get("createdAt"),
        "conversation": record.get("id"),
        "notes": [feedback["comment"]] if feedback.get("comment") else None,
    }
    return {key: value for key, value in about.items() if value is not None}
