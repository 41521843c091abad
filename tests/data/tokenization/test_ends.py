"""Every token that ends an answer is known, and an answer has exactly one."""

import json

import pytest
from tokenizers import AddedToken

from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.tokenization.chat import Chat, load_chat
from jaxdpo.data.tokenization.ends import configured_ends

ASKED = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
NO = {"role": "assistant", "content": "No"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"city": "Rome"}}}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
TOOLS = ({"type": "function", "function": {"name": "look"}},)
# Closes the text and then the turn, as Command R does.
COHERE = (
    "{% for m in messages %}{{ '<turn>' + m.role + '<text>' + m.content }}"
    "{% if m.role == 'assistant' %}{{ '<end_text>' }}{% endif %}{{ '<end_turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant<text>' }}{% endif %}"
)
# Closes nothing, as GLM does: the next turn's opening is what its model stops at.
GLM = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ '<observation>' + m.content }}"
    "{% else %}{{ '<' + m.role + '>' }}{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "{{ '<tool_call>' + c.function.name }}{{ c.function.arguments | tojson }}{{ '</tool_call>' }}"
    "{% endfor %}{% endif %}{% endfor %}{{ '' if not tools else tools | tojson | trim('[]') }}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
).replace("{{ '' if not tools else tools | tojson | trim('[]') }}", "")
# Ends an answer and a call in tokens of their own, as gpt-oss does.
HARMONY = (
    "{% for m in messages %}{{ '<|start|>' + m.role + ' ' }}{% if m.tool_calls %}"
    "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}"
    "{% endfor %}{{ '<|call|>' }}{% else %}{{ m.content }}"
    "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant ' }}{% endif %}"
)


def chat_with(make_tokenizer, template, tokens, ends=(), eos="<|endoftext|>"):
    tokenizer = make_tokenizer("bytes", "chatml")
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    tokenizer.eos_token = eos
    return Chat(tokenizer, template, tokenizer.convert_tokens_to_ids(list(ends)))


def ends_of(chat):
    return chat.tokenizer.convert_ids_to_tokens(list(chat.end_ids))


def answer_tokens(chat, answer):
    ids = chat.encode_pair(PreferencePair((ASKED,), (answer,), (NO,), "TRAIN")).chosen_ids
    return chat.tokenizer.convert_ids_to_tokens(ids.tolist())


def test_a_base_models_end_is_known_beside_the_templates(make_tokenizer):
    chat = chat_with(make_tokenizer, None, [], ["<|endoftext|>", "<|eot_id|>"])
    assert ends_of(chat) == ["<|im_end|>", "<|endoftext|>", "<|eot_id|>"]
    assert answer_tokens(chat, ANSWER)[-1] == "<|im_end|>"
    assert chat.stop_token_ids == tuple(sorted(chat.end_ids))


def test_the_end_of_the_turn_and_not_of_the_text_is_the_end(make_tokenizer):
    tokens = ["<turn>", "<text>", "<end_text>", "<end_turn>"]
    chat = chat_with(make_tokenizer, COHERE, tokens, eos="<end_turn>")
    assert ends_of(chat) == ["<end_turn>"]
    assert answer_tokens(chat, ANSWER)[-2:] == ["<end_text>", "<end_turn>"]


def test_a_template_that_closes_nothing_ends_where_the_model_stops(make_tokenizer):
    tokens = ["<user>", "<assistant>", "<observation>"]
    known = chat_with(make_tokenizer, GLM, tokens, ["<|endoftext|>", "<user>", "<observation>"])
    assert ends_of(known)[0] == "<user>"
    assert answer_tokens(known, ANSWER)[-1] == "<user>"
    assert answer_tokens(known, CALLING)[-2:] == ["</tool_call>", "<observation>"]
    # Where the configuration does not say so, the end of text is added.
    unknown = chat_with(make_tokenizer, GLM, tokens)
    assert answer_tokens(unknown, ANSWER)[-1] == "<|endoftext|>"
    assert answer_tokens(unknown, CALLING)[-2:] == ["</tool_call>", "<|endoftext|>"]


def test_a_call_ends_in_its_own_token_and_no_other(make_tokenizer):
    tokens = ["<|start|>", "<|end|>", "<|call|>", "<|return|>"]
    chat = chat_with(make_tokenizer, HARMONY, tokens)
    assert ends_of(chat) == ["<|return|>", "<|endoftext|>", "<|call|>"]
    assert answer_tokens(chat, ANSWER)[-1] == "<|return|>"
    called = answer_tokens(chat, CALLING)
    assert called[-1] == "<|call|>"
    assert "<|return|>" not in called


def test_named_ends_are_known_where_the_tokenizer_has_them(make_tokenizer):
    assert "<|eom_id|>" in ends_of(chat_with(make_tokenizer, None, ["<|eom_id|>"]))
    assert "<|eom_id|>" not in ends_of(chat_with(make_tokenizer, None, []))


def test_ends_are_read_from_both_configurations(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer("bytes", "chatml")
    tokenizer.save_pretrained(tmp_path)
    names = ["<|endoftext|>", "<|eot_id|>", "</s>"]
    ids = tokenizer.convert_tokens_to_ids(names)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids[:2]}))
    config = {"eos_token_id": ids[2], "text_config": {"eos_token_id": [ids[0]]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert configured_ends(tmp_path) == tuple(ids)
    assert set(ends_of(load_chat(str(tmp_path)))) == {"<|im_end|>", *names}
    # What a library writes by default may be a letter of this vocabulary; that ends nothing.
    letter = tokenizer.convert_tokens_to_ids("a")
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [letter, 10**6, None]}))
    assert set(ends_of(load_chat(str(tmp_path)))) == {"<|im_end|>", *names[:2]}


@pytest.mark.parametrize("damaged", ["", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": true}'])
def test_configurations_without_ends(tmp_path, damaged):
    (tmp_path / "generation_config.json").write_text(damaged)
    assert configured_ends(tmp_path) == ()


def test_the_fingerprint_covers_the_ends(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    [eot] = tokenizer.convert_tokens_to_ids(["<|eot_id|>"])
    assert Chat(tokenizer).fingerprint != Chat(tokenizer, end_ids=[eot]).fingerprint
