"""Rules that all tools' exports share: the field of the prompt, and what a reply says.

Annotation tools let their users name fields and questions as they like. What is known by a usual
name, or by what it holds, is read; everything else is counted as not understood, never guessed at.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.reading.said import as_messages
from jaxdpo.feedback.preferences import NoPair
from jaxdpo.feedback.turns import Derived

_PROMPTS = (
    "messages",
    "prompt",
    "instruction",
    "question",
    "conversation",
    "input",
    "chat",
    "query",
)
_BESIDE = ("id", "system", "context", "metadata", "model", "split", "reference")
_PASSED = {"pass": True, "yes": True, "good": True, "true": True, "correct": True, "accept": True,
           "accepted": True, "fail": False, "no": False, "bad": False, "false": False,
           "incorrect": False, "reject": False, "rejected": False}  # fmt: skip
_TIES = ("tie", "equal", "both", "both good", "same", "no preference")
_ALL_BAD = ("all bad", "both bad", "neither", "none")
_EDITS = ("edit", "correct", "improve", "rewrit", "revis", "better", "response", "answer",
          "completion")  # fmt: skip


class Row(NamedTuple):
    """A prompt, the answers to it by the names of their fields, and who judged what.

    Attributes:
      messages: The prompt.
      answers: Name of its field ↦ answer.
      about: Fields of every record that comes of it: annotator, time, conversation, metadata.
      where: Its place, as `file:line`.
    """

    messages: list[Any]
    answers: Mapping[str, Any]
    about: Mapping[str, Any]
    where: str

    def with_notes(self, notes: Sequence[str]) -> "Row":
        """Returns the row with what the same person wrote about it."""
        return self._replace(about={**self.about, "notes": list(notes) or None})

    def record(self, source: Any, **fields: Any) -> Derived:
        """Returns a record of one of the sources about this prompt."""
        about = {key: value for key, value in self.about.items() if value is not None}
        return Derived(source, {"messages": self.messages, **about, **fields}, self.where)


def row_of(fields: Mapping[str, Any], about: Mapping[str, Any], where: str) -> Row:
    """Tells the prompt of a tool's record from the answers.

    Args:
      fields: The record's fields, by name.
      about: Who judged, and when.
      where: Its place, as `file:line`.

    Raises:
      BadPair: If no field has the usual name of a prompt, or there is no answer.
    """
    name = next((name for name in _PROMPTS if fields.get(name)), None)
    if name is None:
        raise BadPair(
            "no-prompt",
            f"has {', '.join(fields)}; name the field with the prompt {' or '.join(_PROMPTS[:3])}",
        )
    messages = [said.message for said in as_messages(fields[name], name, "user")]
    # Shown apart from the question by most tools, and a part of what the model was asked.
    if isinstance(fields.get("system"), str):
        messages = [{"role": "system", "content": fields["system"]}, *messages]
    answers = {
        key: value
        for key, value in fields.items()
        if key not in (*_PROMPTS, *_BESIDE) and isinstance(value, str | list | dict) and value
    }
    if not answers and messages[-1].get("role") == "assistant":
        # A conversation that ends with the answer.
        messages, answers = messages[:-1], {name: messages[-1]}
    if not answers:
        raise BadPair("no-answer", f"has {', '.join(fields)}; no field but the prompt's holds text")
    return Row(messages, answers, about, where)


def reply_to(row: Row, question: str, value: Any, target: str | None = None) -> list[Derived]:
    """Returns what one reply to one question says, as records of the sources.

    Args:
      row: The prompt and its answers.
      question: The question's name.
      value: The reply: a field's name, a verdict, a number, a text, or a ranking.
      target: The answer that it is about, where the tool says so.

    Raises:
      NoPair: If it says nothing about which answer is better.
    """
    if isinstance(value, list):
        return _ranked(row, question, value)
    if isinstance(value, str):
        chosen = answer_named(row, value)
        if chosen is not None and len(row.answers) > 1:
            names = list(row.answers)
            outputs = [row.answers[name] for name in names]
            return [row.record("user_choice", outputs=outputs, selected=names.index(chosen))]
        plain = value.strip().lower().replace("_", " ")
        if len(row.answers) > 1 and plain in _TIES:
            raise NoPair("tie")
        if len(row.answers) > 1 and plain in _ALL_BAD:
            return [row.record("thumbs", output=each, label=False) for each in row.answers.values()]
        # Usual words alone: "partly" and "4 of 5" are no verdict.
        if plain in _PASSED:
            return [_judged(row, question, target, passed=_PASSED[plain])]
        if any(word in question.lower() for word in _EDITS):
            output = _answer_meant(row, question, target)
            return [row.record("expert_edits", output=output, edited=value)]
    # Before numbers, since true is 1 to Python.
    if isinstance(value, bool):
        return [_judged(row, question, target, passed=value)]
    if isinstance(value, int | float):
        return [_judged(row, question, target, score=float(value))]
    raise NoPair(f"not understood: {question}")


def answer_named(row: Row, name: str) -> str | None:
    """Returns the field that a reply means by a name, `response_2` or `2` or `B`; None for none."""
    if name in row.answers:
        return name
    fields = list(row.answers)
    plain = name.strip().lower()
    for places in ("123456789", "abcdefghi"):
        if len(plain) == 1 and plain in places and places.index(plain) < len(fields):
            return fields[places.index(plain)]
    return None


def is_text_reply(row: Row, question: str, value: Any) -> bool:
    """Tells a comment from an answer to a question: text that is no verdict, edit or name.

    Args:
      row: The prompt and its answers.
      question: The question's name.
      value: The reply.
    """
    return (
        isinstance(value, str)
        and answer_named(row, value) is None
        and value.strip().lower() not in (*_PASSED, *_TIES, *_ALL_BAD)
        and not any(word in question.lower() for word in _EDITS)
    )


def _answer_meant(row: Row, question: str, target: str | None) -> Any:
    # A tool that says which answer is meant is believed before any name is looked at.
    if target is not None and target in row.answers:
        return row.answers[target]
    if len(row.answers) == 1:
        return next(iter(row.answers.values()))
    # The longest name first: "response_10_quality" is not about "response_1".
    for name in sorted(row.answers, key=len, reverse=True):
        if name in question:
            return row.answers[name]
    raise NoPair(f"about which answer? {question}")


def _judged(row: Row, question: str, target: str | None, **said: Any) -> Derived:
    notes = row.about.get("notes") or []
    answer = _answer_meant(row, question, target)
    # The name of the answer's field is not a part of the criterion's.
    criterion = question
    for name in row.answers:
        if len(row.answers) > 1 and name in question:
            criterion = question.replace(name, "").strip("_- ") or question
    return row.record(
        "criteria", completion=answer, criterion=criterion, explanation="\n".join(notes), **said
    )


def _ranked(row: Row, question: str, value: Sequence[Any]) -> list[Derived]:
    """Returns the answers of a ranking with their values: the first has the highest."""
    ranks = [
        (each.get("value"), each.get("rank")) if isinstance(each, dict) else (each, place)
        for place, each in enumerate(value, start=1)
    ]
    named = [(answer_named(row, name), rank) for name, rank in ranks if isinstance(name, str)]
    # The first rank is the best: values grow as ranks fall.
    valued = [
        {"completion": row.answers[name], "value": -float(rank), "why": {"rank": rank}}
        for name, rank in named
        if name is not None and isinstance(rank, int | float)
    ]
    if len(valued) < 2:
        raise NoPair(f"not understood: {question}")
    return [row.record("criteria", answers=valued)]
