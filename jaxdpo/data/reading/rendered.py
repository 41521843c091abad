"""Text that a chat template has rendered already: back to messages, or refused by name.

A prompt such as `<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n` would otherwise be
rendered once more, as what a user said. Only text in string columns is looked at: in a list of
messages the roles are written down, and a user may well talk about `<|im_start|>`.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from jaxdpo.data.bad_pair import BadPair, show
from jaxdpo.data.pairs import Message


class Template(NamedTuple):
    """The marks that one family of chat templates writes.

    Attributes:
      name: What people call it.
      opener: Matches what opens a message; the group is the role.
      ends: What may close a message.
      answer: Matches what opens the assistant's message, at the end of a prompt.
      sure: Whether an opener at the start of a text is enough to know the template; a text that
        begins with `User:` is rendered only if an assistant speaks in it, too.
    """

    name: str
    opener: re.Pattern[str]
    ends: tuple[str, ...]
    answer: re.Pattern[str]
    sure: bool = True


def _template(
    name: str, opener: str, answer: str, ends: tuple[str, ...] = (), sure: bool = True
) -> Template:
    # Templates of reasoning models open the thought after the answer's mark.
    last = re.compile(rf"(?:{answer})\s*(?:<think>\s*(?:</think>\s*)?)?\Z")
    return Template(name, re.compile(opener), ends, last, sure)


_ROLES = {
    **{"user": "user", "human": "user", "instruction": "user", "client": "user"},
    **{"assistant": "assistant", "model": "assistant", "chatbot": "assistant", "gpt": "assistant"},
    **{"response": "assistant", "system": "system", "developer": "system"},
    **{"tool": "tool", "ipython": "tool", "observation": "tool"},
}
# The marks are those of the families' published templates.
TEMPLATES = (
    _template(
        "ChatML",
        r"<\|im_start\|>\s*(\w+)\n?",
        r"<\|im_start\|>\s*assistant",
        ("<|im_end|>", "<|endoftext|>"),
    ),
    _template(
        "Llama 3",
        r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>(?:\n\n)?",
        r"<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>",
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    ),
    _template(
        "Llama 4",
        r"<\|header_start\|>(\w+)<\|header_end\|>(?:\n\n)?",
        r"<\|header_start\|>assistant<\|header_end\|>",
        ("<|eot|>", "<|eom|>"),
    ),
    _template(
        "Gemma",
        r"<start_of_turn>(user|model|system)\n?",
        r"<start_of_turn>model",
        ("<end_of_turn>", "<eos>"),
    ),
    _template(
        "Gemma 4", r"<\|turn>(user|model|system)\n?", r"<\|turn>model", ("<turn|>", "<eos>")
    ),
    _template(
        "Phi, Zephyr or Tülu",
        r"<\|(system|user|assistant|tool|observation)\|>\n?",
        r"<\|assistant\|>",
        ("<|end|>", "</s>", "<|endoftext|>", "<|end_of_text|>"),
    ),
    _template(
        "DeepSeek",
        r"<｜(User|Assistant)｜>",
        r"<｜Assistant｜>",
        ("<｜end▁of▁sentence｜>",),
    ),
    _template(
        "Granite",
        r"<\|start_of_role\|>(\w+)<\|end_of_role\|>",
        r"<\|start_of_role\|>assistant<\|end_of_role\|>",
        ("<|end_of_text|>",),
    ),
    _template(
        "Command R",
        r"<\|START_OF_TURN_TOKEN\|><\|(SYSTEM|USER|CHATBOT)_TOKEN\|>",
        r"<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>",
        ("<|END_OF_TURN_TOKEN|>",),
    ),
    _template(
        "Kimi",
        r"<\|im_(system|user|assistant)\|>\w*<\|im_middle\|>",
        r"<\|im_assistant\|>\w*<\|im_middle\|>",
        ("<|im_end|>",),
    ),
    _template(
        "NeMo",
        r"<extra_id_[01]>(System|User|Assistant)\n",
        r"<extra_id_1>Assistant",
    ),
    # Anthropic's and the transcripts after it; one empty line between turns, or only a line break.
    _template("Human/Assistant", r"(?:\A|\n\n)\s*(Human|Assistant):", r"\n\nAssistant:", (), False),
    _template("Human/Assistant", r"(?:\A|\n)\s*(Human|Assistant):", r"\nAssistant:", (), False),
    _template(
        "### Human/### Assistant",
        r"(?:\A|(?<=\s))### (System|Human|User|Assistant):",
        r"### Assistant:",
        (),
        False,
    ),
    _template(
        "Vicuna", r"(?:\A|(?<=[\s>]))(USER|ASSISTANT):", r"ASSISTANT:", ("</s>",), False
    ),
    _template("User/Assistant", r"(?:\A|\n)\s*(User|Assistant):", r"\nAssistant:", (), False),
)  # fmt: skip
_BEGINS_TEXT = re.compile(
    r"\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<BOS_TOKEN>|\[gMASK\]<sop>"
    r"|<｜begin▁of▁sentence｜>)\s*)+"
)
# What any rendered text begins with or ends in: one look tells that most text is not rendered.
_MAY_BEGIN = re.compile(
    r"\s*(?:<s>|<bos>|<\||<｜|<start_of_turn>|<extra_id_|<BOS_TOKEN>|\[gMASK\]|\[INST\]"
    r"|\[SYSTEM_PROMPT\]|Human:|User:|USER:|### |Below is an instruction)"
)
_MAY_END = ("sistant", "SISTANT:", "sistant:", "ponse:", ">", "[/INST]", "model", "think>")
# Vicuna's system prompt has no mark, and neither has the first question in HelpSteer2.
_WITH_PREFACE = ("Vicuna", "NeMo")
# A template that is not in the table is still seen by its marks.
_ANY_MARK = re.compile(r"\s*<[|｜][\w ▁-]{1,40}[|｜]>")
_CHANNELS = re.compile(r"<\|start\|>|<\|channel\|>|<\|message\|>")
_ALPACA = re.compile(r"(?:\A|\n)### (Instruction|Input|Response):[ \t]*\n?")
_ALPACA_PREFACE = "Below is an instruction that describes a task"
_LLAMA_2 = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=(?:<s>\s*)?\[INST\]|\Z)", re.DOTALL)
_LLAMA_2_SYSTEM = re.compile(r"\s*<<SYS>>\n?(.*?)\n?<</SYS>>\s*", re.DOTALL)
_MISTRAL_SYSTEM = re.compile(r"\s*\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\]", re.DOTALL)
# Reasoning models' templates open a thought for the model; ours will, too.
_OPENED_THOUGHT = ("<think>", "<think>\n</think>", "<think>\n\n</think>")


def messages_of(text: str, name: str, is_answer: bool = False) -> list[Message] | None:
    """Reads rendered text back into messages; None for any other text.

    >>> messages_of("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n", "prompt")
    [{'role': 'user', 'content': 'Hi'}]

    What opens the assistant's answer at the end of a prompt is left out: the model's own template
    writes it. An answer that has begun is the last message.

    Args:
      text: The text.
      name: The field it stands in, for messages.
      is_answer: Whether it stands where an answer does: an answer may begin with marks of its own,
        so that those of an unknown template are text.

    Raises:
      BadPair: If the text is rendered, but not by a template that is known.
    """
    may_be = _MAY_BEGIN.match(text) or text.rstrip().endswith(_MAY_END)
    if not may_be and "<extra_id_1>" not in text and "ASSISTANT:" not in text:
        return None
    # BOS is written by the tokenizer once more, so it is no part of the conversation.
    begins = _BEGINS_TEXT.match(text)
    body = text[begins.end() :] if begins else text
    if "[/INST]" in body and "[INST]" in body:
        return _llama_2(body)
    if "### Response:" in body and _is_alpaca(body):
        return _alpaca(body)
    if _CHANNELS.match(body.lstrip()):
        raise _unread(name, text, "a template with channels, as gpt-oss has it")
    for template in TEMPLATES:
        if _is_of(template, body):
            return _turns(template, body, name)
    # `<s>` alone is HTML that is struck through.
    if not is_answer and ((begins and begins[0].strip() != "<s>") or _ANY_MARK.match(body)):
        raise _unread(name, text, "a chat template")
    return None


def is_prompt(text: str) -> bool:
    """Tells a prompt that was rendered whole, from its first mark to the one that opens the answer.

    >>> is_prompt("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n")
    True
    """
    if not _MAY_BEGIN.match(text):
        return False
    begins = _BEGINS_TEXT.match(text)
    body = text[begins.end() :] if begins else text
    if body.lstrip().startswith("[INST]") and body.rstrip().endswith("[/INST]"):
        return True
    return any(
        template.sure and template.opener.match(body.lstrip()) and template.answer.search(body)
        for template in TEMPLATES
    )


def _is_of(template: Template, body: str) -> bool:
    starts = template.opener.match(body.lstrip() if template.sure else body)
    if starts and template.sure:
        return True
    if template.answer.search(body):
        # A list of few-shot examples may end so, too: then the first speaker is not told.
        return template.sure or bool(starts) or _has_user(template, body)
    if template.name == "Human/Assistant" and starts and "\n\nAssistant:" not in body:
        starts = None if "\\n\\n" in template.opener.pattern else starts
    roles = {_ROLES[found[1].lower()] for found in template.opener.finditer(body)} if starts else ()
    if template.name in _WITH_PREFACE:
        roles = {_ROLES[found[1].lower()] for found in template.opener.finditer(body)}
    return "assistant" in roles and ("user" in roles or template.name == "NeMo")


def _has_user(template: Template, body: str) -> bool:
    return any(_ROLES.get(found[1].lower()) == "user" for found in template.opener.finditer(body))


def _turns(template: Template, body: str, name: str) -> list[Message]:
    # Everything up to the next opener is the message, so its text may hold any other mark.
    openers = list(template.opener.finditer(body))
    messages: list[Message] = []
    preface = _content(body[: openers[0].start()], template)
    if preface:
        # Vicuna's and DeepSeek's system prompt has no mark of its own; HelpSteer2's first question.
        role = "user" if template.name == "NeMo" else "system"
        messages.append({"role": role, "content": preface})
    for opener, following in zip(openers, [*openers[1:], None], strict=True):
        role = _ROLES.get(opener[1].lower())
        if role is None:
            raise _unread(name, body, f"{template.name}, with the role {show(opener[1])}")
        end = following.start() if following else len(body)
        messages.append({"role": role, "content": _content(body[opener.end() : end], template)})
    return _without_opened_answer(messages)


def _content(text: str, template: Template) -> str:
    text = text.strip() if not template.ends else _without_end(text, template.ends).strip("\n")
    # Marks of words keep no space of their own; marks of tokens do.
    return text if template.sure else text.strip()


def _without_end(text: str, ends: tuple[str, ...]) -> str:
    stripped = text.rstrip()
    for end in ends:
        if stripped.endswith(end):
            return _without_end(stripped.removesuffix(end), ends)
    return text


def _without_opened_answer(messages: list[Message]) -> list[Message]:
    """Drops an assistant's message at the end that is opened and empty."""
    last = messages[-1]
    empty = not last["content"].strip() or last["content"].strip() in _OPENED_THOUGHT
    return messages[:-1] if last["role"] == "assistant" and empty else messages


def _llama_2(body: str) -> list[Message]:
    messages: list[Message] = []
    if system := _MISTRAL_SYSTEM.match(body):
        messages.append({"role": "system", "content": system[1].strip()})
        body = body[system.end() :]
    for turn in _LLAMA_2.finditer(body):
        asked = turn[1]
        if system := _LLAMA_2_SYSTEM.match(asked):
            messages.append({"role": "system", "content": system[1].strip()})
            asked = asked[system.end() :]
        answer = _without_end(turn[2], ("</s>", "<s>")).strip()
        messages.append({"role": "user", "content": asked.strip()})
        messages.append({"role": "assistant", "content": answer})
    return _without_opened_answer(messages)


def _is_alpaca(body: str) -> bool:
    return "### Instruction:" in body or body.rstrip().endswith("### Response:")


def _alpaca(body: str) -> list[Message]:
    sections = list(_ALPACA.finditer(body))
    preface = body[: sections[0].start()].strip()
    messages: list[Message] = []
    if preface and not preface.startswith(_ALPACA_PREFACE):
        role = "system" if sections[0][1] == "Instruction" else "user"
        messages.append({"role": role, "content": preface})
    for section, following in zip(sections, [*sections[1:], None], strict=True):
        text = body[section.end() : following.start() if following else len(body)].strip()
        text = _without_end(text, ("</s>", "<|endoftext|>")).strip()
        if section[1] == "Input" and messages and messages[-1]["role"] == "user":
            # As unrendered records of this form are read.
            messages[-1]["content"] += f"\n{text}" if text else ""
        else:
            messages.append({"role": _ROLES[section[1].lower()], "content": text})
    return _without_opened_answer(messages)


def _unread(name: str, text: str, template: str) -> BadPair:
    return BadPair(
        "rendered-prompt",
        f"{name} was rendered by {template}: {show(text)}; write the messages that it was rendered "
        "from, or the text alone",
    )


_ANSWER_OPENER: Callable[[str], re.Match[str] | None] = re.compile(
    r"\s*(?:<\|im_start\|>assistant\n?|<\|start_header_id\|>assistant<\|end_header_id\|>(?:\n\n)?"
    r"|<start_of_turn>model\n?|<\|assistant\|>\n?|<｜Assistant｜>|(?:### )?Assistant:|ASSISTANT:"
    r"|### Response:\s?)"
).match
# `</s>` closes a passage of HTML that is struck through as well; there `<s>` opens it.
_ANSWER_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "<|end|>"),
    *("<｜end▁of▁sentence｜>", "<|eot|>", "<turn|>", "<|END_OF_TURN_TOKEN|>", "<eos>", "</s>"),
)


def answer_of(text: str, prompt_was_rendered: bool) -> str:
    """Returns an answer without the end that a template gave it.

    >>> answer_of("A0<|im_end|>\\n", True)
    'A0'

    Args:
      text: The answer.
      prompt_was_rendered: Whether its prompt was: then the mark that opens the answer may stand
        before it, and the white space at its ends is the template's.
    """
    if not prompt_was_rendered and text[-1:] not in (">", "\n", " "):
        return text
    if prompt_was_rendered and (opener := _ANSWER_OPENER(text)):
        text = text[opener.end() :]
    ended = text.rstrip()
    if ended.endswith(_ANSWER_ENDS) and not (ended.endswith("</s>") and "<s>" in ended):
        text = _without_end(text, _ANSWER_ENDS).rstrip("\n")
    return text.strip() if prompt_was_rendered else text
