"""The draft of a pair → `PreferencePair`, or why not: roles, their order, completions, split."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from jaxdpo.data.bad_pair import BadPair, NothingToLearn, kind, show
from jaxdpo.data.config import Turns
from jaxdpo.data.pairs import SAMPLED, Message, PreferencePair, Split
from jaxdpo.data.reading import rendered
from jaxdpo.data.reading.formats import Draft
from jaxdpo.data.reading.messages import parse_message, parse_tools
from jaxdpo.data.reading.said import Said, check_score
from jaxdpo.data.reading.splits import hashed_split, ids_as_prompt, split_named
from jaxdpo.errors import nearest

# Variables that `apply_chat_template` takes for itself, or that a conversation says elsewhere.
_RESERVED_KWARGS = frozenset(
    [
        *("messages", "conversation", "tools", "documents", "chat_template", "tokenize"),
        *("add_generation_prompt", "continue_final_message", "padding", "truncation"),
        *("max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        *("tokenizer_kwargs", "bos_token", "eos_token", "pad_token", "unk_token"),
    ]
)

# Marks of templates begin with one of these.
_MARKS = ("<", "[", "\n", " ")
# A checked message with the field it came from, which every error below names.
_Labelled = tuple[str, Message]


class Where(NamedTuple):
    """The place of a record, and what its pairs take from it.

    Attributes:
      source: The place, as `file:line`.
      test_fraction: Share of prompts that go to TEST where nothing names their split.
      split: The split that the file's name says, if any; a record's own goes before it.
      unread: Counts the fields of messages that nothing reads.
    """

    source: str
    test_fraction: float
    split: Split | None = None
    unread: Counter[str] | None = None


def parse_pair(draft: Draft, where: Where) -> PreferencePair:
    """Checks a draft and makes it a pair.

    Args:
      draft: Who said what, as the record has it.
      where: The record's place.

    Raises:
      BadPair: At the first thing that is wrong.
      NothingToLearn: If no message of an answer is to be learnt.
    """
    prompt, chosen, rejected = (
        _parsed(part, where.unread) for part in (draft.prompt, draft.chosen, draft.rejected)
    )
    if draft.label is not None:
        # One answer alone: there is no other that it could equal.
        _check_prompt(prompt, chosen)
        _check_tool_order([*prompt, *chosen])
        _check_completion(chosen, "last-not-assistant")
    elif draft.token_ids is None:
        _check_conversations(prompt, chosen, rejected)
    elif draft.token_ids[1] == draft.token_ids[2]:
        raise BadPair("identical-completions", "chosen and rejected are the same ids")
    # Weights are looked at once the roles are known to be right: an answer is its assistant's part.
    for answer in (chosen, rejected):
        _check_weights(answer)
    tools = parse_tools(draft.common.get("tools"), draft.common.get("functions"))
    messages = _asked(prompt)
    asked = messages or ids_as_prompt(draft.token_ids)
    return PreferencePair(
        prompt=messages,
        chosen=_messages(chosen),
        rejected=_messages(rejected),
        split=_split(draft, where) or hashed_split(asked, tools, where.test_fraction),
        tools=tools,
        metadata=_parse_metadata(draft),
        source=where.source,
        scores=_parse_scores(draft.scores),
        template_kwargs=_parse_kwargs(draft.common.get("chat_template_kwargs")),
        token_ids=draft.token_ids,
        label=draft.label,
    )


def parse_supervised(draft: Draft, where: Where, turns: Turns) -> list[PreferencePair]:
    """Checks a draft and makes it examples: pairs without a rejected completion.

    A preference is taken for its chosen answer. A message by the assistant whose `weight` is 0 is
    no example.

    Args:
      draft: Who said what; `chosen` holds the last answer, `rejected` is not looked at.
      where: The record's place.
      turns: "last" for the last message that is learnt, "all" for an example of every one, each
        with what was said before it as its prompt.

    Raises:
      BadPair: At the first thing that is wrong.
      NothingToLearn: If no message is to be learnt.
    """
    labelled = _parsed([*draft.prompt, *draft.chosen], where.unread)
    if not draft.is_text:
        _check_prompt(labelled[:-1], labelled[-1:])
    _check_tool_order(labelled)
    messages = _asked(labelled)
    answers = [0] if draft.is_text else _learnt(labelled, turns)
    tools = parse_tools(draft.common.get("tools"), draft.common.get("functions"))
    # All turns of a conversation go to one split: a later turn's prompt holds the earlier answers,
    # so turns on both sides would test on what was trained.
    # A document has no prompt, and is itself what its split hangs on.
    asked = messages if draft.is_text else messages[:-1]
    split = _split(draft, where) or hashed_split(asked, tools, where.test_fraction)
    metadata = _parse_metadata(draft)
    kwargs = _parse_kwargs(draft.common.get("chat_template_kwargs"))
    examples = []
    for index in answers:
        _check_completion([labelled[index]], "last-not-assistant")
        said = (messages[:index], (messages[index],), ())
        examples.append(
            PreferencePair(*said, split, tools, metadata, where.source, template_kwargs=kwargs)
        )
    return examples


def _learnt(labelled: list[_Labelled], turns: Turns) -> list[int]:
    """Chooses the messages that are learnt, by their places in the conversation."""
    by_user = [i for i, (_, message) in enumerate(labelled) if message["role"] == "user"]
    # A greeting before the first question is no answer; where there is none, the system asks.
    first = by_user[0] if by_user else 0
    weighed = [
        i
        for i, (_, message) in enumerate(labelled)
        if message["role"] == "assistant" and i > first and message.get("weight") != 0
    ]
    if not weighed:
        raise NothingToLearn("weight 0")
    return weighed if turns == "all" else weighed[-1:]


def _check_weights(answer: list[_Labelled]) -> None:
    """Refuses an answer of which only some messages are to be learnt.

    Raises:
      BadPair: If some messages by the assistant have weight 0.
      NothingToLearn: If all have.
    """
    weightless = [field for field, message in answer if message.get("weight") == 0]
    if not weightless:
        return
    if len(weightless) == sum(message["role"] == "assistant" for _, message in answer):
        raise NothingToLearn("weight 0")
    # An answer's tokens are compared with the other answer's, so none of them can be left out.
    raise BadPair(
        "message-weight",
        f"{weightless[0]}.weight is 0, but other messages of the answer are learnt; put the "
        "messages that are not into the prompt",
    )


def _parsed(said: Sequence[Said], unread: Counter[str] | None) -> list[_Labelled]:
    return [(each.field, parse_message(each.message, each.field, unread)) for each in said]


def _messages(labelled: list[_Labelled]) -> tuple[Message, ...]:
    return tuple([message for _, message in labelled])


def _asked(labelled: list[_Labelled]) -> tuple[Message, ...]:
    """Returns messages without their weights, which say nothing of what was asked."""
    return tuple(
        [
            {key: item for key, item in message.items() if key != "weight"}
            if "weight" in message
            else message
            for _, message in labelled
        ]
    )


def _check_conversations(
    prompt: list[_Labelled], chosen: list[_Labelled], rejected: list[_Labelled]
) -> None:
    _check_prompt(prompt, chosen)
    # Few conversations have tools, and walking all messages twice is half of the checks' time.
    has_tools = any(
        message["role"] == "tool" or "tool_calls" in message
        for part in (prompt, chosen, rejected)
        for _, message in part
    )
    if has_tools:
        _check_tool_order([*prompt, *chosen])
    _check_completion(chosen, "last-not-assistant")
    _check_completion(rejected, "rejected-role")
    if has_tools:
        _check_tool_order([*prompt, *rejected])
    if _texts(chosen) == _texts(rejected):
        # DPO's gradient of a pair with equal answers is zero: such a line is a mistake upstream.
        (field, message), preferred = rejected[-1], chosen[-1][0]
        named = "the chosen message" if preferred.startswith("messages[") else preferred
        raise BadPair(
            "identical-completions",
            f"{field} equals {named}, {show(message.get('content'))}; "
            "a pair needs a preference: edit one or drop the line",
        )


def _texts(labelled: list[_Labelled]) -> list[Message]:
    """Returns messages without the ids that they were sampled as: one text has several."""
    return [{k: v for k, v in message.items() if k != SAMPLED} for _, message in labelled]


def _check_prompt(prompt: list[_Labelled], chosen: list[_Labelled]) -> None:
    field, last = chosen[-1]
    if last["role"] != "assistant":
        raise BadPair(
            "last-not-assistant",
            f"{field}.role is {show(last['role'])}; the last message is the chosen answer, by the "
            "assistant",
        )
    # OpenAI's files have prompts of a system message alone, so it may ask as well as a user.
    if not any(message["role"] in ("user", "system") for _, message in prompt):
        name = prompt[0][0].split("[")[0] if prompt else "the prompt"
        raise BadPair("no-user", f"{name} holds no user message; a prompt needs one")
    for field, message in prompt:
        # A user may quote a template's marks; a message that is a whole rendered prompt is one that
        # was rendered before it was put there, and would be rendered twice.
        content = message.get("content", "")
        if (
            message["role"] == "user"
            and content[:1] in _MARKS
            and rendered.is_prompt(message["content"])
        ):
            raise BadPair(
                "rendered-prompt",
                f"{field}.content was rendered by a chat template: {show(message['content'])}; "
                "write the messages that it was rendered from",
            )
    # Most templates write only the first message as the system's and drop or refuse later ones.
    for field, message in prompt[1:]:
        if message["role"] == "system":
            raise BadPair(
                "system-not-first",
                f"{field}.role is 'system'; a system message stands first, and once",
            )


def _check_tool_order(messages: list[_Labelled]) -> None:
    # Templates number or match answers to calls in silence; a wrong order would train nonsense.
    open_calls: list[str | None] = []
    for field, message in messages:
        if message["role"] == "tool":
            _close_call(message, open_calls, field)
            continue
        if open_calls:
            raise BadPair(
                "tool-call-unanswered",
                f"{field} follows a tool call that no tool message answers "
                f"(id {show(open_calls[0])}); add the tool's answer",
            )
        open_calls = [call.get("id") for call in message.get("tool_calls", ())]


def _close_call(message: Message, open_calls: list[str | None], field: str) -> None:
    """Takes the call that a tool message answers, by id where both name one, else by order."""
    if not open_calls:
        raise BadPair(
            "tool-without-call",
            f"{field}.role is 'tool' but no tool call is open; it must follow an assistant message "
            "with tool_calls",
        )
    answered = message.get("tool_call_id")
    # Llama's and Gemma's data sets have no ids; there the order of calls is the order of answers.
    if answered is None or None in open_calls:
        open_calls.pop(0)
    elif answered in open_calls:
        open_calls.remove(answered)
    else:
        raise BadPair(
            "tool-call-id",
            f"{field}.tool_call_id is {show(answered)}; it must be one of the open calls "
            f"{show(open_calls)}",
        )


def _check_completion(messages: list[_Labelled], last_code: str) -> None:
    field, last = messages[-1]
    if last["role"] != "assistant":
        raise BadPair(last_code, f"{field}.role is {show(last['role'])}; it must be 'assistant'")
    for index, (field, message) in enumerate(messages):
        role = message["role"]
        if role not in ("assistant", "tool") or (index == 0 and role != "assistant"):
            raise BadPair(
                "completion-role",
                f"{field}.role is {show(role)}; a completion is messages by the assistant, with "
                "the answers of its tools between; what comes before belongs to the prompt",
            )
        # A call of a tool is an answer without text; nothing else is.
        content = message.get("content", "")
        if role == "assistant" and not content.strip() and "tool_calls" not in message:
            state = f"only white space, {show(content)}" if content else "empty"
            raise BadPair(
                "empty-completion", f"{field}.content is {state}; write an answer or drop the line"
            )


def _split(draft: Draft, where: Where) -> Split | None:
    split = draft.common.get("split")
    if split is None:
        return where.split
    # The two names of this project are most lines' and need no pattern.
    if split in get_args(Split):
        return split
    named = split_named(split) if isinstance(split, str) else None
    if named is None:
        hint = nearest(split.upper(), get_args(Split)) if isinstance(split, str) else ""
        raise BadPair(
            "bad-split",
            f"split is {show(split)}; write 'TRAIN' or 'TEST', or leave it out{hint}",
        )
    return named


def _parse_metadata(draft: Draft) -> dict[str, Any]:
    metadata = draft.common.get("metadata")
    if isinstance(metadata, str):
        # A table without structures keeps them as JSON text.
        metadata = _object_in(metadata)
    if metadata is not None and not isinstance(metadata, dict):
        raise BadPair("metadata-type", f"metadata is {kind(metadata)}; write an object")
    # What the user calls metadata goes before a column that happens to have the same name.
    return {**draft.extra, **(metadata or {})}


def _object_in(text: str) -> Any:
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text
    return value if isinstance(value, dict) or value is None else text


def _parse_scores(scores: tuple[Any, Any] | None) -> tuple[float, float] | None:
    if scores is None:
        return None
    for score, which in zip(scores, ("chosen", "rejected"), strict=True):
        check_score(score, f"the score of {which}")
    return float(scores[0]), float(scores[1])


def _parse_kwargs(kwargs: Any) -> dict[str, Any]:
    if kwargs is None:
        return {}
    if not isinstance(kwargs, dict):
        raise BadPair("template-kwargs", f"chat_template_kwargs is {kind(kwargs)}; write an object")
    # A record may switch reasoning on, and must not replace the template or the conversation.
    for key in kwargs:
        if key in _RESERVED_KWARGS or not key.isidentifier():
            raise BadPair(
                "template-kwargs", f"chat_template_kwargs.{key} is not for a record to set"
            )
    return kwargs
