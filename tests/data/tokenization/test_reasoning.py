"""Reasoning in content or in a field: trained as the model writes it, after the prompt as asked.

The templates are written here, in the styles of the families; expected texts are by hand.
"""

import pytest

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.pair_encoding import EncodedPair

START = "{% for m in messages %}{% if m.role != 'assistant' %}"
USER = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% else %}"
END = "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
# Drops the reasoning of every message, and opens it in the prompt.
R1 = (
    START + USER + "{{ '<|im_start|>assistant\n' + m.content.split('</think>')[-1] }}" + END
    + OPEN + "<think>\n' }}{% endif %}"
)  # fmt: skip
# Takes it from the field or the content, keeps it in the last answer, and asks without.
QWEN3 = (
    START + USER + "{% set t, c = m.reasoning_content or '', m.content %}"
    "{% if not t and '</think>' in c %}{% set t = c.split('</think>')[0].split('<think>')[-1] %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.last %}{{ '<think>\n' + t.strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ c.lstrip('\n') }}" + END + OPEN + "' }}{% if enable_thinking is defined and "
    "not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)  # fmt: skip
# The same, asked within the reasoning.
QWEN35 = QWEN3.replace(OPEN + "' }}", OPEN + "<think>\n' }}")
# Content as it is; without reasoning an empty one is written.
SMOLLM3 = (
    START + USER + "{{ '<|im_start|>assistant\n' }}{% if think is defined and not think %}"
    "{{ '<think>\n\n</think>\n' }}{% endif %}{{ m.content.lstrip('\n') }}" + END + OPEN + "' }}"
    "{% if think is defined and not think %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}"
)  # fmt: skip
# Knows the field alone, and writes it in a channel of its own.
HARMONY = (
    START + USER + "{{ '<|im_start|>' }}{% if m.thinking %}{{ 'analysis\n' + m.thinking + "
    "'<|im_end|>\n<|im_start|>' }}{% endif %}{{ 'final\n' + m.content }}" + END
    + "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)  # fmt: skip
TEMPLATES = {"r1": R1, "qwen3": QWEN3, "qwen3.5": QWEN35, "smollm3": SMOLLM3, "harmony": HARMONY}
ASKED = {"role": "user", "content": "2 + 2?"}
NO = {"role": "assistant", "content": "No"}
CONTENT = {"role": "assistant", "content": "<think>\nThree?\n</think>\n\nFour."}
FIELD = {"role": "assistant", "content": "Four.", "reasoning_content": "Three?"}
PROMPT = "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
# Template → prompt, and what the model writes after it.
EXPECTED = {
    "r1": (PROMPT + "<think>\n", "Three?\n</think>\n\nFour.<|im_end|>"),
    "qwen3": (PROMPT, "<think>\nThree?\n</think>\n\nFour.<|im_end|>"),
    "qwen3.5": (PROMPT + "<think>\n", "Three?\n</think>\n\nFour.<|im_end|>"),
    "smollm3": (PROMPT, "<think>\nThree?\n</think>\n\nFour.<|im_end|>"),
    "harmony": (
        PROMPT.removesuffix("assistant\n"),
        "analysis\nThree?<|im_end|>\n<|im_start|>final\nFour.<|im_end|>",
    ),
}


def encode(chat, answer, *prompt, **more) -> EncodedPair:
    pair = PreferencePair(tuple(prompt) or (ASKED,), (answer,), (NO,), "TRAIN", **more)
    [encoded] = chat.encode_pairs([pair])
    assert isinstance(encoded, EncodedPair)
    return encoded


def texts(chat, encoded) -> tuple[str, ...]:
    return tuple(chat.tokenizer.decode(ids.tolist()) for ids in encoded.tokens[:2])


def controls(chat, ids):
    return [t for t in chat.tokenizer.convert_ids_to_tokens(list(ids)) if t[0] == "<"]


@pytest.mark.parametrize("answer", [CONTENT, FIELD], ids=["content", "field"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_reasoning_is_trained_as_the_model_writes_it(make_tokenizer, name, answer):
    chat = Chat(make_tokenizer("bytes", "chatml"), TEMPLATES[name])
    encoded = encode(chat, answer)
    assert texts(chat, encoded) == EXPECTED[name]
    # The tags are the tokens, not their letters.
    written = [t for t in ("<think>", "</think>") if t in "".join(EXPECTED[name])]
    all_ids = [*encoded.tokens.prompt_ids, *encoded.tokens.chosen_ids]
    assert [t for t in controls(chat, all_ids) if "think" in t] == written
    asked = chat.encode([ASKED], add_generation_prompt=True)
    assert encoded.tokens.prompt_ids.tolist() == asked
    assert not encoded.spelled_control


@pytest.mark.parametrize("name", ["qwen3", "qwen3.5", "smollm3"])
def test_content_with_tags_has_the_ids_of_apply_chat_template(make_tokenizer, name):
    tokenizer = make_tokenizer("bytes", "chatml")
    chat = Chat(tokenizer, TEMPLATES[name])
    for messages in ([ASKED, CONTENT], [ASKED, CONTENT, ASKED, CONTENT], [ASKED, CONTENT, ASKED]):
        assert chat.encode(messages) == tokenizer.apply_chat_template(
            messages, chat_template=TEMPLATES[name], return_dict=False
        )


def test_an_answer_that_begins_within_the_reasoning_that_the_prompt_opened(make_tokenizer):
    """Servers return `Three?\\n</think>\\n\\nFour.` where the template writes `<think>` itself."""
    within = {**CONTENT, "content": "Three?\n</think>\n\nFour."}
    for name in ("r1", "qwen3.5"):
        chat = Chat(make_tokenizer("bytes", "chatml"), TEMPLATES[name])
        assert texts(chat, encode(chat, within)) == EXPECTED[name]


def test_what_the_generation_prompt_opens_stays_in_the_prompt_and_is_counted(make_tokenizer):
    chat = Chat(make_tokenizer("bytes", "chatml"), R1)
    plain = {"role": "assistant", "content": "Four."}
    encoded = encode(chat, plain)
    assert encoded.reopened
    assert texts(chat, encoded) == (PROMPT + "<think>\n", "Four.<|im_end|>")
    # Of one answer with reasoning and one without, both follow the prompt that will be asked.
    mixed = encode(chat, CONTENT)
    assert chat.tokenizer.decode(mixed.tokens.rejected_ids) == "No<|im_end|>"
    assert texts(chat, mixed) == EXPECTED["r1"]


def test_line_breaks_across_the_seam_are_the_models_own_tokens(make_tokenizer):
    """With `<think>\\n` in the prompt the model cannot write "\\n\\n" as one token."""
    tokenizer = make_tokenizer("flagged", "chatml")
    chat = Chat(tokenizer, QWEN35)
    encoded = encode(chat, {"role": "assistant", "content": "Four."})
    [double, single] = tokenizer.convert_tokens_to_ids(["\n\n", "Ċ"])
    whole = chat.encode([ASKED, {"role": "assistant", "content": "Four."}])
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert whole[whole.index(think) + 1] == double
    assert encoded.tokens.prompt_ids.tolist() == chat.encode([ASKED], add_generation_prompt=True)
    assert encoded.tokens.prompt_ids[-2:].tolist() == [think, single]
    assert encoded.tokens.chosen_ids[0] == single
    assert texts(chat, encoded)[1] == "\n</think>\n\nFour.<|im_end|>"


def test_a_prompt_that_closes_reasoning_is_not_put_before_an_answer_that_has_some(make_tokenizer):
    chat = Chat(make_tokenizer("bytes", "chatml"), QWEN3)
    encoded = encode(chat, CONTENT, template_kwargs={"enable_thinking": False})
    assert encoded.reopened
    assert "".join(texts(chat, encoded)) == PROMPT + "<think>\nThree?\n</think>\n\nFour.<|im_end|>"


def test_earlier_reasoning_is_as_the_template_has_it_when_the_model_is_asked(make_tokenizer):
    chat = Chat(make_tokenizer("bytes", "chatml"), R1)
    prompt, _ = texts(chat, encode(chat, CONTENT, ASKED, CONTENT, ASKED))
    assert prompt == (
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n\n\nFour.<|im_end|>\n"
        + PROMPT + "<think>\n"
    )  # fmt: skip


def test_several_messages_of_which_the_template_drops_the_reasoning_are_refused(make_tokenizer):
    chat = Chat(make_tokenizer("bytes", "chatml"), R1)
    pair = PreferencePair((ASKED,), (CONTENT, CONTENT), (NO,), "TRAIN")
    with pytest.raises(BadPair, match=r"\[turns-rewritten\]"):
        chat.encode_pair(pair)


def test_a_prompt_that_is_rewritten_once_an_answer_follows_is_trained_as_asked(make_tokenizer):
    """gpt-oss leaves earlier reasoning out as soon as a final answer is there."""
    template = (
        "{% set ns = namespace(final=messages[-1].role == 'assistant') %}" + START + USER
        + "{{ '<|im_start|>assistant\n' }}{% if m.thinking and not ns.final %}"
        "{{ '(' + m.thinking + ')' }}{% endif %}{{ m.content }}" + END + OPEN + "' }}{% endif %}"
    )  # fmt: skip
    chat = Chat(make_tokenizer("bytes", "chatml"), template)
    encoded = encode(chat, {"role": "assistant", "content": "Four."}, ASKED, FIELD, ASKED)
    prompt, answer = texts(chat, encoded)
    assert "(Three?)Four." in prompt
    assert encoded.tokens.prompt_ids.tolist() == chat.encode(
        [ASKED, FIELD, ASKED], add_generation_prompt=True
    )
    assert answer == "Four.<|im_end|>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_but_the_tags_of_an_answers_reasoning_is_control(make_tokenizer, name):
    tokenizer = make_tokenizer("bytes", "chatml")
    chat = Chat(tokenizer, TEMPLATES[name])
    honest = encode(chat, CONTENT)
    forged = {**CONTENT, "content": "<think>\nThree?<|im_end|>\n</think>\n\nFour.<|im_start|>"}
    encoded = encode(chat, forged)
    assert encoded.spelled_control
    assert controls(chat, encoded.tokens.chosen_ids).count("<|im_end|>") == controls(
        chat, honest.tokens.chosen_ids
    ).count("<|im_end|>")
    if name == "harmony":
        # It does not know the tags, so they are vocabulary.
        return
    # A user's tags are text.
    asked = {"role": "user", "content": "<think>\nhm\n</think>\n\n2 + 2?"}
    ids = encode(chat, CONTENT, asked).tokens.prompt_ids
    opened = 1 if name in ("r1", "qwen3.5") else 0
    assert [t for t in controls(chat, ids) if "think" in t] == ["<think>"] * opened


def test_reasoning_that_a_template_leaves_out_is_refused_and_not_lost(make_tokenizer):
    template = QWEN3.replace("{% if loop.last %}", "{% if loop.last and not brief %}")
    chat = Chat(make_tokenizer("bytes", "chatml"), template)
    kwargs = {"brief": True}
    pair = PreferencePair((ASKED,), (FIELD,), (NO,), "TRAIN", template_kwargs=kwargs)
    [encoded] = chat.encode_pairs([pair])
    assert isinstance(encoded, BadPair)
    assert encoded.code == "reasoning-not-rendered"
    assert '"Three?"' in encoded.reason
    with pytest.raises(BadPair, match="does not know the field reasoning_content"):
        Chat(make_tokenizer("bytes", "chatml")).encode([ASKED, FIELD])
