"""Reasoning of a model: where data has it, and in which form a chat template takes it.

Models reason between tags before they answer, and data holds that as the model wrote it,
`<think>…</think>` at the start of the content, or in a field of its own. A template may keep such
content as it is, split it itself, know only the field, or drop the reasoning of every message
(R1-Distill does, and opens `<think>` in the prompt). What an answer is trained on must be what the
model writes, so the form is found out once, by rendering a probe.
"""

import re
from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple

from jaxdpo.data.pairs import Message
from jaxdpo.data.reading.messages import REASONING_KEYS

# DeepSeek, Qwen, GLM, Nemotron, SmolLM3; Magistral; Command A; Seed-OSS.
TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
)
_THOUGHT, _ANSWER = "Ponder 3kd", "Answer 9fz"
_ASKED = {"role": "user", "content": "Hello"}

Treatment = Literal["kept", "field", "dropped", "none"]
# Renders messages, with a generation prompt or without; None where the template refuses them.
Render = Callable[[list[Message], bool, dict[str, Any]], str | None]


class Thought(NamedTuple):
    """An assistant's content that begins with reasoning, in its parts.

    Attributes:
      opening: The opening tag and the white space before it; empty where the prompt holds it.
      reasoning: The text between the tags.
      closing: The closing tag.
      answer: The text after it.
    """

    opening: str
    reasoning: str
    closing: str
    answer: str


class Reasoning(NamedTuple):
    """The form in which a template takes reasoning.

    Attributes:
      treatment: "kept" if content with tags is rendered with them; "field" if reasoning must stand
        in a field of its own; "dropped" if the template removes it; "none" if it has no notion of
        it, and tags are text.
      tags: The tags that the template writes or looks for, or None.
      field: Whether it knows a field for reasoning, at least in some messages.
      opened: Whether the generation prompt can open reasoning, so that answers begin within it.
    """

    treatment: Treatment
    tags: tuple[str, str] | None
    field: bool
    opened: bool

    def split(self, message: Message) -> Thought | None:
        """Returns an assistant's reasoning where the template must be given it in another form.

        Args:
          message: By anyone. A field that the template knows stays one.
        """
        if self.treatment == "none" or message["role"] != "assistant":
            return None
        content = message.get("content") or ""
        given = next((message[key] for key in REASONING_KEYS if message.get(key)), None)
        if given is None:
            return self._split_content(content)
        if self.field or self.tags is None:
            return None
        return Thought(f"{self.tags[0]}\n", given, f"\n{self.tags[1]}", f"\n\n{content}")

    def _split_content(self, content: str) -> Thought | None:
        for opening, closing in (self.tags,) if self.tags else TAGS:
            before, found, answer = content.partition(closing)
            if not found:
                continue
            lead, opened, reasoning = before.partition(opening)
            if opened and not lead.strip():
                return Thought(lead + opened, reasoning, closing, answer)
            # The prompt opened it, so the model wrote only the end.
            if not opened and self.opened:
                return Thought("", before, closing, answer)
        return None


def find_reasoning(render: Render, names: Collection[str], literals: str) -> Reasoning:
    """Finds out in which form a template takes reasoning.

    Args:
      render: Renders messages by it.
      names: Fields that it may look at.
      literals: The text that it writes or looks for itself.
    """
    tags = next((pair for pair in TAGS if any(tag in literals for tag in pair)), None)
    opening, closing = tags or TAGS[0]
    # Words that no template writes itself, so that what is found comes from the probe.
    said = {"role": "assistant", "content": _ANSWER}
    fields = dict.fromkeys(REASONING_KEYS, _THOUGHT)
    raw = f"{opening}\n{_THOUGHT}\n{closing}\n\n{_ANSWER}"
    by_field = render([_ASKED, {**said, **fields}], False, {}) or ""
    by_tags = render([_ASKED, {**said, "content": raw}], False, {}) or ""
    field = _THOUGHT in by_field
    # A template that adds an empty thought of its own does not look for tags in the content.
    answered = by_tags.rpartition(_ASKED["content"])[2]
    kept = _THOUGHT in answered and answered.count(closing) == 1
    # Tags are looked at first: content with them is what the model wrote, to the line break.
    treatment: Treatment
    if tags is None:
        treatment = "field" if field else "none"
    elif kept:
        treatment = "kept"
    elif field:
        treatment = "field"
    else:
        treatment = "dropped" if _ANSWER in answered else "none"
    known = field or any(key in names for key in REASONING_KEYS)
    return Reasoning(treatment, tags, known, tags is not None and _opens(render, opening))


def _opens(render: Render, opening: str) -> bool:
    """Tells whether a generation prompt of the template ends in the opening tag."""
    prompts = (render([_ASKED], True, kwargs) for kwargs in ({}, {"enable_thinking": True}))
    return any((prompt or "").rstrip().endswith(opening) for prompt in prompts)


def ends_in_opening(prompt: str, opening: str) -> bool:
    """Tells whether a rendered prompt ends in the opening tag, white space aside."""
    return bool(re.search(re.escape(opening) + r"\s*$", prompt))


def without_thought(message: Message) -> Message:
    """Returns a message without its content and its reasoning."""
    return {key: v for key, v in message.items() if key not in ("content", *REASONING_KEYS)}


def with_reasoning(message: Message) -> Message:
    """Names a message's reasoning in every way that templates look for it."""
    if message.keys().isdisjoint(REASONING_KEYS):
        return message
    reasoning = next(message[key] for key in REASONING_KEYS if key in message)
    return {**dict.fromkeys(REASONING_KEYS, reasoning), **message, "reasoning_content": reasoning}
