"""How each form of preference record says who said what: prompt, chosen and rejected messages."""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxdpo.data.bad_pair import BadPair, kind, show
from jaxdpo.errors import nearest

# Fields of an OpenAI chat request that say how an answer was sampled, not what was asked.
# https://platform.openai.com/docs/api-reference/chat/create
IGNORED_KEYS = frozenset(
    [
        *("tool_choice", "function_call"),
        *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs"),
        *("max_completion_tokens", "max_tokens", "n", "seed", "stop", "temperature", "top_p"),
        *("model", "parallel_tool_calls", "reasoning_effort", "response_format"),
        *("service_tier", "store", "stream", "stream_options", "user"),
    ]
)


class Said(NamedTuple):
    """A message that is still to be checked, and the field it stands in."""

    field: str
    message: Any


class Parts(NamedTuple):
    """Who said what in one pair."""

    prompt: Sequence[Said]
    chosen: Sequence[Said]
    rejected: Sequence[Said]


def need(record: dict[str, Any], *keys: str) -> list[Any]:
    """The values of keys that a record must have."""
    for key in keys:
        if record.get(key) is None:
            state = "null" if key in record else "missing"
            raise BadPair("missing-key", f"{key} is {state}; every line needs it")
    return [record[key] for key in keys]


def listed(messages: list[Any], name: str) -> list[Said]:
    """Messages with the field that each stands in."""
    return [Said(f"{name}[{index}]", message) for index, message in enumerate(messages)]


def as_messages(value: Any, name: str, role: str) -> list[Said]:
    """A string, one message or a list of messages, as messages."""
    if isinstance(value, str):
        return [Said(name, {"role": role, "content": value})]
    if isinstance(value, dict):
        return [Said(name, value)]
    if isinstance(value, list) and value:
        return listed(value, name)
    state = "an empty list" if value == [] else kind(value)
    raise BadPair("messages-type", f"{name} is {state}; write a string, or a list of messages")


def openai(record: dict[str, Any]) -> Parts:
    """OpenAI's preference fine-tuning."""
    asked, chosen, rejected = need(record, "input", "preferred_output", "non_preferred_output")
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise BadPair("messages-type", 'input holds no messages; write {"messages": […]}')
    for key in asked:
        known = ("messages", "tools", "functions")
        if key not in known and key not in IGNORED_KEYS:
            hint = nearest(key, (*known, *IGNORED_KEYS))
            raise BadPair("unknown-key", f"input has the unknown key {show(key)}{hint}")
    return Parts(
        listed(asked["messages"], "input.messages"),
        as_messages(chosen, "preferred_output", "assistant"),
        as_messages(rejected, "non_preferred_output", "assistant"),
    )


def trl(record: dict[str, Any]) -> Parts:
    """TRL's: strings or lists of messages; without a prompt, what both answers begin with."""
    chosen, rejected = need(record, "chosen", "rejected")
    prompt = record.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str) and prompt is None:
        return _shared_words(chosen, rejected)
    answers = (
        as_messages(chosen, "chosen", "assistant"),
        as_messages(rejected, "rejected", "assistant"),
    )
    if prompt is None:
        return _shared_turns(*answers)
    asked = as_messages(prompt, "prompt", "user")
    opens = [_role(answer[0].message) != "assistant" for answer in answers]
    if not any(opens):
        return Parts(asked, *answers)
    # Some data sets repeat the prompt's text at the start of both answers.
    parts = _shared_turns(*answers)
    last = parts.prompt[-1].message if parts.prompt else None
    repeated = isinstance(prompt, str) and isinstance(last, dict) and last.get("content") == prompt
    if repeated or [s.message for s in parts.prompt] == [s.message for s in asked]:
        return parts
    raise BadPair(
        "prompt-differs",
        "chosen and rejected begin with messages of a prompt that is not the one in prompt; "
        "leave prompt out, or leave it to prompt alone",
    )


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _shared_turns(chosen: list[Said], rejected: list[Said]) -> Parts:
    """The turns that both conversations begin with are the prompt."""
    shared = 0
    most = min(len(chosen), len(rejected)) - 1
    while shared < most and chosen[shared].message == rejected[shared].message:
        shared += 1
    if not shared:
        raise BadPair(
            "no-prompt",
            "chosen and rejected begin with no message in common, so there is no prompt; "
            "write it as prompt",
        )
    return Parts(chosen[:shared], chosen[shared:], rejected[shared:])


def _shared_words(chosen: str, rejected: str) -> Parts:
    """The words that both strings begin with are the prompt; a word is never split."""
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
            "as prompt",
        )
    return Parts(
        [Said("prompt", {"role": "user", "content": prompt})],
        [Said("chosen", {"role": "assistant", "content": chosen[len(prompt) :].lstrip()})],
        [Said("rejected", {"role": "assistant", "content": rejected[len(prompt) :].lstrip()})],
    )


def labelled(record: dict[str, Any]) -> Parts:
    """One answer, found good or not: our own messages, or TRL's prompt and completion."""
    (label,) = need(record, "label")
    if not isinstance(label, bool):
        raise BadPair("label-type", f"label is {show(label)}; write true or false")
    if record.get("messages") is None:
        asked, answer = need(record, "prompt", "completion")
        prompt = as_messages(asked, "prompt", "user")
        return Parts(prompt, as_messages(answer, "completion", "assistant"), ())
    if record.get("prompt") is not None or record.get("completion") is not None:
        raise BadPair("answer-twice", "the record has messages and prompt or completion; keep one")
    said = as_messages(record["messages"], "messages", "user")
    return Parts(said[:-1], said[-1:], ())


_ROLE_OF = {
    **{"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"},
    **{"system": "system", "observation": "tool", "tool": "tool", "function_response": "tool"},
}


def sharegpt(record: dict[str, Any]) -> Parts:
    """ShareGPT's turns, as LLaMA-Factory has them for preferences."""
    turns, chosen, rejected = need(record, "conversations", "chosen", "rejected")
    if not isinstance(turns, list):
        raise BadPair("messages-type", f"conversations is {kind(turns)}; write a list of turns")
    prompt = [_from_value(turn, f"conversations[{i}]") for i, turn in enumerate(turns)]
    if record.get("system"):
        prompt.insert(0, Said("system", {"role": "system", "content": record["system"]}))
    answers = []
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if isinstance(answer, list):
            answers.append([_from_value(turn, f"{name}[{i}]") for i, turn in enumerate(answer)])
        elif isinstance(answer, str):
            answers.append(as_messages(answer, name, "assistant"))
        else:
            answers.append([_from_value(answer, name)])
    return Parts(prompt, *answers)


def _from_value(turn: Any, field: str) -> Said:
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
        raise BadPair("message-type", f'{field} is no turn; write {{"from": …, "value": …}}')
    extra = [key for key in turn if key not in ("from", "value") and turn[key] is not None]
    if extra:
        raise BadPair("unknown-message-key", f"{field} has the unknown key {show(extra[0])}")
    sender, value = turn["from"], turn["value"]
    if sender == "function_call":
        return Said(field, {"role": "assistant", "tool_calls": [_call_of(value, field)]})
    if not isinstance(sender, str) or sender not in _ROLE_OF:
        known = (*_ROLE_OF, "function_call")
        raise BadPair(
            "unknown-role", f"{field}.from is {show(sender)}; write one of {', '.join(known)}"
        )
    return Said(field, {"role": _ROLE_OF[sender], "content": value})


def _call_of(value: Any, field: str) -> dict[str, Any]:
    try:
        call = json.loads(value) if isinstance(value, str) else value
    except (json.JSONDecodeError, RecursionError):
        call = None
    if not isinstance(call, dict):
        raise BadPair(
            "tool-call-type", f'{field}.value is no call; write {{"name": …, "arguments": …}}'
        )
    return {"type": "function", "function": call}


_MARKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def begins_transcript(text: Any) -> bool:
    """Whether this is a string of turns, the first by a human."""
    return isinstance(text, str) and text.lstrip("\n").startswith("Human:")


def transcript(record: dict[str, Any]) -> Parts:
    """Anthropic's HH: two dialogues, the same up to the last answer."""
    chosen, rejected = need(record, "chosen", "rejected")
    return _shared_turns(_turns(chosen, "chosen"), _turns(rejected, "rejected"))


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


def alpaca(record: dict[str, Any]) -> Parts:
    """Instruction and input, one line below the other; history and system where there are."""
    instruction, chosen, rejected = need(record, "instruction", "chosen", "rejected")
    for name in ("instruction", "input", "system", "chosen", "rejected"):
        if not isinstance(record.get(name) or "", str):
            raise BadPair("content-type", f"{name} is {kind(record[name])}; write a string")
    asked = instruction + (f"\n{record['input']}" if record.get("input") else "")
    prompt = [Said("instruction", {"role": "user", "content": asked})]
    history = record.get("history") or []
    if not isinstance(history, list):
        raise BadPair("messages-type", f"history is {kind(history)}; write [[question, answer], …]")
    for i, turn in reversed(list(enumerate(history))):
        if not isinstance(turn, list) or len(turn) != 2:
            raise BadPair("message-type", f"history[{i}] is no [question, answer]")
        both = zip(("user", "assistant"), turn, strict=True)
        prompt = [Said(f"history[{i}]", {"role": r, "content": c}) for r, c in both] + prompt
    if record.get("system"):
        prompt.insert(0, Said("system", {"role": "system", "content": record["system"]}))
    answers = (
        as_messages(chosen, "chosen", "assistant"),
        as_messages(rejected, "rejected", "assistant"),
    )
    return Parts(prompt, *answers)


_TEXT_KEYS = ("response", "text", "content", "completion", "output", "messages")
_VALUE_KEYS = ("score", "overall_score", "rating", "reward")


def ranked(record: dict[str, Any], margin: float | None) -> list[tuple[Parts, tuple[float, float]]]:
    """Several completions with a score each: the parts and scores of each pair they make."""
    asked = "prompt" if record.get("prompt") is not None else "instruction"
    given = "completions" if record.get("completions") is not None else "responses"
    prompt, listed = need(record, asked, given)
    if not isinstance(listed, list) or len(listed) < 2:
        state = f"holds {len(listed)}" if isinstance(listed, list) else f"is {kind(listed)}"
        raise BadPair("ranked-short", f"{given} {state}; a preference needs at least 2")
    scores = record.get("scores")
    if scores is not None and (not isinstance(scores, list) or len(scores) != len(listed)):
        raise BadPair("ranked-scores", f"scores must be a list of {len(listed)}, one a completion")
    answers = []
    for i, item in enumerate(listed):
        where = f"{given}[{i}]"
        score = _first(item, _VALUE_KEYS, f"{where} has no score") if scores is None else scores[i]
        answer = item
        if isinstance(item, dict) and "role" not in item:
            answer = _first(item, _TEXT_KEYS, f"{where} has no text")
        check_score(score, f"the score of {where}")
        answers.append((float(score), as_messages(answer, where, "assistant")))
    return [
        (Parts(as_messages(prompt, asked, "user"), chosen, rejected), (high, low))
        for (high, chosen), (low, rejected) in _pairs_of(answers, margin)
    ]


_Answer = tuple[float, list[Said]]


def _pairs_of(answers: list[_Answer], margin: float | None) -> list[tuple[_Answer, _Answer]]:
    # Sorting is stable: of equals the first is taken, at either end.
    best = sorted(answers, key=lambda answer: -answer[0])
    if margin is None:
        worst = min(answers, key=lambda answer: answer[0])
        pairs = [(best[0], worst)] if best[0][0] > worst[0] else []
    else:
        pairs = [
            (high, low)
            for high, low in itertools.combinations(best, 2)
            if high[0] - low[0] >= margin
        ]
    if not pairs:
        how = "are equal" if margin is None else f"differ by less than {margin:g}"
        raise BadPair("no-preference", f"all scores {how}; drop the line")
    return pairs


def _first(item: Any, names: tuple[str, ...], problem: str) -> Any:
    for name in names:
        if isinstance(item, dict) and item.get(name) is not None:
            return item[name]
    raise BadPair("ranked-item", f"{problem}; write it as one of {', '.join(names)}")


def check_score(score: Any, name: str) -> None:
    """Refuses what is no finite number.

    Raises:
      BadPair: Naming it.
    """
    if isinstance(score, bool) or not isinstance(score, int | float) or score != score:
        raise BadPair("score-type", f"{name} is {show(score)}; write a number")


def token_ids(record: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Ids that were tokenised elsewhere: prompt, chosen and rejected."""
    ids = []
    for part in ("prompt", "chosen", "rejected"):
        name = f"{part}_ids" if f"{part}_ids" in record else f"{part}_input_ids"
        (value,) = need(record, name)
        if not isinstance(value, list) or not all(type(id) is int and id >= 0 for id in value):
            raise BadPair("token-ids", f"{name} is {show(value)}; write a list of token ids")
        if not value:
            raise BadPair("token-ids", f"{name} is empty; write at least one token id")
        ids.append(tuple(value))
    return ids[0], ids[1], ids[2]
