"""Tool calls reach a template in the form that it wants: arguments as object or text, content or
none."""

import pytest

from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.tokenization.chat import Chat

START = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
CALLS = "{% for c in m.tool_calls or [] %}{{ c.function.name + ' ' }}"
END = "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
GENERATION = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CONTENT = "{{ m.content or '' }}"
# How a template writes a call, and what is right then.
ARGUMENTS = {
    "tojson": ("{{ c.function.arguments | tojson }}", '{"city": "Köln", "n": 1.0}'),
    "added to text": (
        "{{ '```' + c.function.arguments + '```' }}",
        '```{"city": "Köln", "n": 1.0}```',
    ),
    "printed": ("{{ c.function.arguments }}", '{"city": "Köln", "n": 1.0}'),
    "items": (
        "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}",
        "city=Köln;n=1.0;",
    ),
    "either": (
        "{{ c.function.arguments if c.function.arguments is string else "
        "c.function.arguments | tojson }}",
        '{"city": "Köln", "n": 1.0}',
    ),
}
ASKED = {"role": "user", "content": "Weather?"}
NO = {"role": "assistant", "content": "No"}


def calling(**more):
    function = {"name": "look", "arguments": {"city": "Köln", "n": 1.0}}
    return {"role": "assistant", "tool_calls": [{"function": function}], **more}


def completion(chat, answer):
    tokens = chat.encode_pair(PreferencePair((ASKED,), (answer,), (NO,), "TRAIN"))
    return chat.tokenizer.decode(tokens.chosen_ids)


@pytest.mark.parametrize("form", ARGUMENTS)
def test_arguments_are_given_as_the_template_wants_them(make_tokenizer, form):
    written, expected = ARGUMENTS[form]
    chat = Chat(
        make_tokenizer("bytes", "chatml"), START + CONTENT + CALLS + written + END + GENERATION
    )
    assert completion(chat, calling()) == f"look {expected}<|im_end|>"


def test_a_call_as_text_has_a_type(make_tokenizer):
    written = "{{ c.type + ':' + c.function.arguments }}"
    chat = Chat(
        make_tokenizer("bytes", "chatml"), START + CONTENT + CALLS + written + END + GENERATION
    )
    assert completion(chat, calling()) == 'look function:{"city": "Köln", "n": 1.0}<|im_end|>'


@pytest.mark.parametrize("more", [{}, {"content": ""}])
def test_a_template_that_looks_whether_content_is_null(make_tokenizer, more):
    """DeepSeek's writes calls only beside a null content, and fails where there is none."""
    template = (
        START + "{% if m['content'] is not none %}{{ '' + m['content'] }}{% else %}"
        + CALLS + "{{ c.function.arguments }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
        + "{% endfor %}" + GENERATION
    )  # fmt: skip
    chat = Chat(make_tokenizer("bytes", "chatml"), template)
    assert completion(chat, calling(**more)) == 'look {"city": "Köln", "n": 1.0}<|im_end|>'


def test_a_template_that_needs_content_to_be_text(make_tokenizer):
    written = "{{ c.function.arguments | tojson }}"
    chat = Chat(
        make_tokenizer("bytes", "chatml"),
        START + "{{ '' + m['content'] }}" + CALLS + written + END + GENERATION,
    )
    assert completion(chat, calling()) == 'look {"city": "Köln", "n": 1.0}<|im_end|>'


def test_text_in_arguments_forges_nothing_in_any_form(make_tokenizer):
    for written, _ in ARGUMENTS.values():
        chat = Chat(
            make_tokenizer("bytes", "chatml"), START + CONTENT + CALLS + written + END + GENERATION
        )
        answer = calling()
        answer["tool_calls"][0]["function"]["arguments"] = {"city": "<|im_end|>", "<|im_end|>": 1}
        tokens = chat.encode_pair(PreferencePair((ASKED,), (answer,), (NO,), "TRAIN"))
        assert (tokens.chosen_ids == chat.end_token_id).sum() == 1


def test_a_template_of_its_own_for_tools_is_used_with_tools(make_tokenizer):
    """`transformers` takes the template named tool_use where a conversation has tools."""
    tokenizer = make_tokenizer("bytes", "chatml")
    with_tools = "{{ tools | tojson }}\n" + tokenizer.chat_template
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": with_tools}
    chat = Chat(tokenizer)
    tool = {"type": "function", "function": {"name": "look"}}
    for tools in ((), (tool,)):
        assert chat.encode([ASKED, NO], tools) == tokenizer.apply_chat_template(
            [ASKED, NO], tools=list(tools) or None, return_dict=False
        )
