"""Text in any field, of any added token, with three kinds of tokenizer: no control token forged.

`JAXDPO_TEST_FORGERIES=100000` tries as many texts.
"""

import os
import random
import re

import pytest

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.tokenization.chat import Chat

TEXTS = int(os.environ.get("JAXDPO_TEST_FORGERIES", 3000))
BATCH = 500
THOUGHT = re.compile(r"\s*<think>.*</think>", re.DOTALL)
# Writes every field that any template does.
EVERYTHING = (
    "{% if style %}{{ '<|im_start|>' + style + '<|im_end|>' }}{% endif %}"
    "{% for t in tools or [] %}{{ '<|im_start|>' + t | tojson + '<|im_end|>' }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.name %}{{ m.name + ': ' }}{% endif %}{% if m.tool_call_id %}{{ m.tool_call_id }}"
    "{% endif %}{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}"
    "{% endif %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "{{ '<tool_call>' + c.function.name + ' ' + (c.id or '') }}{{ c.function.arguments | tojson }}"
    "{{ '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASKED = {"role": "user", "content": "Where?"}
CHOSEN, REJECTED = ({"role": "assistant", "content": text} for text in ("Here it is.", "There."))


def pair(*prompt, chosen=CHOSEN, rejected=REJECTED, **more):
    return PreferencePair(tuple(prompt), (chosen,), (rejected,), "TRAIN", **more)


def tool(**function):
    return {"type": "function", "function": {"name": "look", **function}}


def called(name="look", id="c", arguments=None, answer="cold"):
    call = {"type": "function", "id": id, "function": {"name": name, "arguments": arguments or {}}}
    calling = {"role": "assistant", "tool_calls": [call]}
    return pair(ASKED, calling, {"role": "tool", "content": answer, "tool_call_id": id})


FIELDS = {
    "system": lambda text: pair({"role": "system", "content": text}, ASKED),
    "user": lambda text: pair({**ASKED, "content": text}),
    "name": lambda text: pair({**ASKED, "name": text}),
    "earlier answer": lambda text: pair(ASKED, {"role": "assistant", "content": text}, ASKED),
    "chosen": lambda text: pair(ASKED, chosen={**CHOSEN, "content": text + " yes"}),
    "rejected": lambda text: pair(ASKED, rejected={**REJECTED, "content": text + " no"}),
    "reasoning": lambda text: pair(ASKED, chosen={**CHOSEN, "reasoning_content": text or "hm"}),
    "tool's answer": lambda text: called(answer=text),
    "call's name": lambda text: called(name=text),
    "call's id": lambda text: called(id=text),
    "argument": lambda text: called(arguments={"place": text}),
    "argument's name": lambda text: called(arguments={text: 1}),
    "tool's name": lambda text: pair(ASKED, tools=(tool(name=text),)),
    "tool's description": lambda text: pair(ASKED, tools=(tool(description=text),)),
    "tool's parameter": lambda text: pair(ASKED, tools=(tool(parameters={text: {"type": text}}),)),
    "template's variable": lambda text: pair(ASKED, template_kwargs={"style": text + "!"}),
    "metadata": lambda text: pair(ASKED, metadata={text: text}),
}


def forgery(rng, tokens):
    """One added token or more, whole, in parts, or in other characters that read the same."""
    token = rng.choice(tokens)
    at = rng.randrange(len(token) + 1)
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in token)
    parts = [token, token, token[:at], token[at:], token.upper(), wide, rng.choice(tokens)]
    parts += [" ", "\n", "x", "<", "|", ">", "é", "the end of"]
    return "".join(rng.choices(parts, k=rng.randrange(1, 6)))


@pytest.mark.parametrize("backend", ["bytes", "metaspace-always", "word-piece"])
def test_no_text_in_any_field_becomes_a_control_token(make_tokenizer, backend):
    tokenizer = make_tokenizer(backend, "chatml")
    chat = Chat(tokenizer, EVERYTHING)
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    unknown = tokenizer.backend_tokenizer.token_to_id("<unk>")
    # Issue 15: a token that is neither special nor written by the template is vocabulary, and
    # text has its id; here that is <tool_response>. It is still tried in every field.
    controls = {
        id
        for id, token in added.items()
        if (token.special or token.content in EVERYTHING) and id != unknown
    }
    tokens = [token.content for token in added.values()]
    rng = random.Random(0)

    def written(encoded):
        return [[id for id in ids if id in controls] for ids in encoded.tokens[:3]]

    expected = {
        name: written(chat.encode_pairs([field("harmless")])[0]) for name, field in FIELDS.items()
    }
    # Every added token in every field, and then at random.
    named = [(name, token) for name in FIELDS for token in tokens]
    drawn = max(TEXTS // 3 + 1, 1000)
    named += [(name, forgery(rng, tokens)) for name in rng.choices(list(FIELDS), k=drawn)]
    refused = 0
    for begin in range(0, len(named), BATCH):
        batch = named[begin : begin + BATCH]
        pairs = [FIELDS[name](text) for name, text in batch]
        for (name, text), encoded in zip(batch, chat.encode_pairs(pairs), strict=True):
            if isinstance(encoded, BadPair):
                # A name that JSON writes with escapes cannot be found again; nothing else.
                assert encoded.code in ("tools-not-rendered", "control-text"), encoded
                refused += 1
            elif name in ("earlier answer", "chosen", "rejected") and THOUGHT.match(text):
                # Issue 15: tags of reasoning at the start of an assistant's content are its own.
                found = [id for ids in written(encoded) for id in ids]
                for tag in tokenizer.convert_tokens_to_ids(["<think>", "</think>"]):
                    found.remove(tag)
                assert sorted(found) == sorted(id for ids in expected[name] for id in ids), (
                    name,
                    text,
                )
            else:
                assert written(encoded) == expected[name], (name, text)
    assert refused < len(named) / 20


@pytest.mark.parametrize("backend", ["bytes", "metaspace-always", "word-piece"])
def test_harmless_text_keeps_its_ids_in_every_field(make_tokenizer, backend):
    tokenizer = make_tokenizer(backend, "chatml")
    chat = Chat(tokenizer, EVERYTHING)
    rng = random.Random(1)
    words = [
        "Hobart",
        "capital",
        " of",
        "\n\n",
        "  ",
        "x < y",
        "a || b",
        "東京",
        "😊",
        "end",
        "é",
        "-",
    ]
    for _ in range(max(TEXTS // 30, 60)):
        name = rng.choice([name for name in FIELDS if name not in ("metadata", "rejected")])
        made = FIELDS[name]("a" + "".join(rng.choices(words, k=rng.randrange(1, 6))) + "b")
        ids = chat.encode([*made.prompt, *made.chosen], made.tools, False, made.template_kwargs)
        assert ids == tokenizer.apply_chat_template(
            [*made.prompt, *made.chosen],
            tools=list(made.tools) or None,
            chat_template=EVERYTHING,
            return_dict=False,
            **made.template_kwargs,
        ), name
