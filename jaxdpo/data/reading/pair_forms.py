"""The forms with a chosen and a rejected answer: where the prompt ends and the answers begin."""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.data.config import Format
from jaxdpo.data.reading.asked import (
    Asked,
    RoleKeys,
    answer_in,
    asked_in,
    plain_answer,
    role_of,
    with_system,
)
from jaxdpo.data.reading.columns import sort_of, typo_of
from jaxdpo.data.reading.conversation import as_roles, said_in, turns_of
from jaxdpo.data.reading.said import Parts, Said, as_messages, listed, need

# Fields of an OpenAI chat request that say how an answer was sampled, not what was asked.
# https://platform.openai.com/docs/api-reference/chat/create, and those of its imitators.
IGNORED_KEYS = frozenset(
    [
        *("tool_choice", "function_call", "parallel_tool_calls", "prediction", "modalities"),
        *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs"),
        *("max_completion_tokens", "max_tokens", "max_output_tokens", "n", "seed", "stop"),
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "best_of"),
        *("model", "reasoning_effort", "reasoning", "thinking", "verbosity", "response_format"),
        *("service_tier", "store", "stream", "stream_options", "user", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "web_search_options", "audio"),
        *("extra_body", "extra_headers", "extra_query", "timeout"),
    ]
)


class Read(NamedTuple):
    """The messages of a pair, and the columns that they were read from.

    Attributes:
      parts: The messages.
      used: The columns.
      prompt_is_named: Whether a column of the record is its prompt by name; without one the prompt
        is what both answers begin with.
    """

    parts: Parts
    used: frozenset[str]
    prompt_is_named: bool = True


def openai(record: dict[str, Any], roles: RoleKeys) -> Read:
    """Reads OpenAI's preference fine-tuning: Fireworks has the same form."""
    # The request is whole, so its messages are the prompt and no other column is.
    asked, chosen, rejected = need(record, "input", "preferred_output", "non_preferred_output")
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise BadPair("messages-type", 'input holds no messages; write {"messages": […]}')
    known = ("messages", "tools", "functions")
    for key, value in asked.items():
        if key in known or key in IGNORED_KEYS:
            continue
        # The request's other fields say how to sample, future ones too. Two kinds must not be
        # lost: a misspelt name, and one that says what was asked.
        hint = typo_of(key, known)
        if hint or (sort_of(key) == "asked" and value):
            raise BadPair("unknown-key", f"input has the unknown key {show(key)}{hint}")
    parts = Parts(
        listed(asked["messages"], "input.messages"),
        as_messages(chosen, "preferred_output", "assistant"),
        as_messages(rejected, "non_preferred_output", "assistant"),
    )
    prompt, used = with_system(list(parts.prompt), record, roles)
    taken = {"input", "preferred_output", "non_preferred_output", *used}
    return Read(parts._replace(prompt=prompt), frozenset(taken))


def pair(record: dict[str, Any], roles: RoleKeys) -> Read:
    """Reads a prompt, if there is one, and two answers: TRL's columns and all that resemble them.

    Without a prompt it is the messages or the words that both answers begin with.
    """
    chosen_key = next(iter(roles.get("chosen", ())), "chosen")
    rejected_key = next(iter(roles.get("rejected", ())), "rejected")
    chosen, rejected = need(record, chosen_key, rejected_key)
    asked = _asked(record, roles)
    if asked.messages and not asked.rendered and "system" not in roles:
        plain = [
            plain_answer(value, key)
            for key, value in ((chosen_key, chosen), (rejected_key, rejected))
        ]
        if plain[0] is not None and plain[1] is not None:
            # The usual record; what follows comes to the same.
            parts = Parts(asked.messages, [plain[0]], [plain[1]])
            return Read(parts, asked.used | {chosen_key, rejected_key})
    used = {chosen_key, rejected_key, *asked.used}
    named = bool(asked.messages)
    answers = (answer_in(chosen, chosen_key, asked), answer_in(rejected, rejected_key, asked))
    texts = isinstance(chosen, str) and isinstance(rejected, str)
    if not named and texts and all(role_of(answer[0]) == "assistant" for answer in answers):
        parts = _shared_words(chosen, rejected)
    elif not named:
        parts = shared_turns(*answers)
    elif any(role_of(answer[0]) not in ("assistant", None) for answer in answers):
        # Some data sets repeat the prompt at the start of both answers.
        shared = shared_turns(*answers)
        parts = shared._replace(prompt=_longer(asked.messages, shared.prompt))
        if parts.prompt is shared.prompt:
            # `unread.py` looks whether these columns say more than the answers' own turns.
            used -= asked.used
    else:
        parts = Parts(asked.messages, *answers)
    prompt, system_keys = with_system(list(parts.prompt), record, roles)
    used |= system_keys
    # A list of messages names its roles: no other column is needed to know what was asked.
    return Read(parts._replace(prompt=prompt), frozenset(used), named or not texts)


def _asked(record: dict[str, Any], roles: RoleKeys) -> Asked:
    asked = asked_in(record, roles)
    messages = record.get("messages")
    if asked.messages or not isinstance(messages, list | dict | str):
        return asked
    # Beside two answers, `messages` is either the prompt or the conversation with the chosen one.
    said = as_roles(said_in(messages, "messages", "user", whole=True))
    if role_of(said[-1]) == "assistant":
        return asked
    return Asked(said, frozenset(["messages"]), isinstance(messages, str))


def _longer(asked: list[Said], shared: Sequence[Said]) -> Sequence[Said]:
    """Chooses the prompt column if it ends with the turns that the answers repeat, else those."""
    if len(asked) <= len(shared):
        return shared
    ours, theirs = ([_essence(said) for said in each] for each in (asked, shared))
    ends_alike = ours[-len(theirs) :] == theirs
    return asked if ends_alike else shared


def _essence(said: Said) -> Any:
    message = said.message
    return (message.get("role"), message.get("content")) if isinstance(message, dict) else message


def shared_turns(chosen: list[Said], rejected: list[Said]) -> Parts:
    """Splits two conversations where they part; the turns that both begin with are the prompt."""
    # At least the last message of each is its answer, even where both end alike.
    shared = 0
    most = min(len(chosen), len(rejected)) - 1
    while shared < most and (
        chosen[shared].message == rejected[shared].message
        or _essence(chosen[shared]) == _essence(rejected[shared])
    ):
        shared += 1
    if not shared:
        raise BadPair(
            "no-prompt",
            "chosen and rejected begin with no message in common, so there is no prompt; "
            "write it as prompt",
        )
    return Parts(chosen[:shared], chosen[shared:], rejected[shared:])


def _shared_words(chosen: str, rejected: str) -> Parts:
    """Splits two strings where they part, between words, as TRL's implicit prompts are split."""
    # Whole words: split between characters, "blue" and "black" would part as "bl" and "ue".
    words = [re.findall(r"\s*\S+|\s+$", text) for text in (chosen, rejected)]
    same = itertools.takewhile(lambda both: both[0] == both[1], zip(*words, strict=False))
    prompt = "".join(word for word, _ in same)
    if prompt in (chosen, rejected):
        # One goes on where the other ends: the last word that both have is answer, not prompt.
        prompt = (
            prompt[: len(prompt) - len(re.findall(r"\s*\S+|\s+$", prompt)[-1])] if prompt else ""
        )
    if not prompt.strip():
        raise BadPair(
            "no-prompt",
            "chosen and rejected begin with no words in common, so there is no prompt; write it "
            "as prompt, or name its column by data.columns={prompt: …}",
        )
    return Parts(
        [Said("prompt", {"role": "user", "content": prompt})],
        [Said("chosen", {"role": "assistant", "content": chosen[len(prompt) :].lstrip()})],
        [Said("rejected", {"role": "assistant", "content": rejected[len(prompt) :].lstrip()})],
    )


def sharegpt(record: dict[str, Any], roles: RoleKeys) -> Read:
    """Reads ShareGPT's turns, as LLaMA-Factory has them for preferences."""
    turns, *_ = need(record, "conversations", "chosen", "rejected")
    check_turns(turns, "conversations")
    return pair(record, roles)


def check_turns(turns: Any, name: str) -> None:
    """Refuses what is no list of turns.

    Raises:
      BadPair: Naming the first turn that says nothing.
    """
    if isinstance(turns, str | dict):
        # JSON text, or a struct of lists; both are looked at when they are read.
        return
    if not isinstance(turns, list):
        raise BadPair("messages-type", f"{name} is {kind(turns)}; write a list of turns")
    for i, turn in enumerate(turns):
        known = isinstance(turn, dict) and (
            {"from", "value"} <= turn.keys()
            or ("role" in turn and len(turn) > 1)
            or turn.keys() == {"input", "output"}
        )
        if not known:
            raise BadPair(
                "message-type", f'{name}[{i}] is no turn; write {{"from": …, "value": …}}'
            )
        turns_of(turn, f"{name}[{i}]")


_MARKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def begins_transcript(text: Any) -> bool:
    """Tells a string of turns, the first by a human."""
    return isinstance(text, str) and text.lstrip("\n").startswith("Human:")


def transcript(record: dict[str, Any], roles: RoleKeys) -> Read:
    """Reads Anthropic's HH: two dialogues, the same up to the last answer."""
    chosen, rejected = need(record, "chosen", "rejected")
    parts = shared_turns(_turns(chosen, "chosen"), _turns(rejected, "rejected"))
    prompt, used = with_system(list(parts.prompt), record, roles)
    return Read(parts._replace(prompt=prompt), frozenset({"chosen", "rejected", *used}))


def _turns(text: Any, name: str) -> list[Said]:
    if not begins_transcript(text):
        raise BadPair(
            "transcript", f"{name} is {show(text)}; a transcript begins with '\\n\\nHuman:'"
        )
    _, *parts = _MARKER.split(text.lstrip("\n"))
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        Said(f"{name} turn {i + 1}", {"role": roles[who], "content": said.strip()})
        for i, (who, said) in enumerate(zip(parts[::2], parts[1::2], strict=True))
    ]


def alpaca(record: dict[str, Any], roles: RoleKeys) -> Read:
    """Reads instruction and input, one line below the other; history and system where there are."""
    need(record, "instruction")
    for name in ("instruction", "input", "system", "chosen", "rejected"):
        if not isinstance(record.get(name) or "", str | list | dict):
            raise BadPair("content-type", f"{name} is {kind(record[name])}; write a string")
    return pair(record, roles)


def conversation_pair(record: dict[str, Any], roles: RoleKeys) -> Read:
    """Reads a conversation that ends with the chosen answer, and the rejected one: ms-swift's form.

    `rejected_messages` may repeat the prompt.
    """
    messages = need(record, "messages")[0]
    key = next(iter(roles.get("rejected", ())), "rejected_message")
    rejected = need(record, key)[0]
    # The last message is the chosen answer, unless the other list tells where the two part.
    said = as_roles(said_in(messages, "messages", "user", whole=True))
    asked = Asked(said[:-1], frozenset(["messages"]))
    other = answer_in(rejected, key, asked)
    parts = (
        Parts(asked.messages, said[-1:], other)
        if role_of(other[0]) in ("assistant", None)
        else shared_turns(said, other)
    )
    prompt, used = with_system(list(parts.prompt), record, roles)
    return Read(parts._replace(prompt=prompt), frozenset({"messages", key, *used}))


READERS: dict[Format, Callable[[dict[str, Any], RoleKeys], Read]] = {
    "openai": openai,
    "trl": pair,
    "sharegpt": sharegpt,
    "transcript": transcript,
    "alpaca": alpaca,
}
