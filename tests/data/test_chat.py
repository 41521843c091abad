import itertools

import pytest

from jaxdpo.data.chat import Chat

BENIGN = [
    [
        {"role": "user", "content": "What is the capital of Tasmania?"},
        {"role": "assistant", "content": "Hobart."},
    ],
    [
        {"role": "user", "content": "  Trim me \n"},
        {"role": "assistant", "content": "a < b\n\nand <b>bold</b> 😊 <"},
        {"role": "user", "content": "> user | end"},
        {"role": "assistant", "content": "user\n\n\nKöln, 東京 "},
    ],
]


@pytest.mark.parametrize(
    "template", ["chatml", "llama3", "qwen", "gemma", "mistral", "phi3", "plain"]
)
@pytest.mark.parametrize(
    "backend",
    ["bytes", "lower", "metaspace-first", "metaspace-always", "word-piece", "llama2", "flagged"],
)
def test_benign_text_gets_the_ids_of_apply_chat_template(make_tokenizer, backend, template):
    tokenizer = make_tokenizer(backend, template)
    chat = Chat(tokenizer)
    for messages, prompt in itertools.product(BENIGN, (False, True)):
        expected = tokenizer.apply_chat_template(
            messages, add_generation_prompt=prompt, return_dict=False
        )
        assert chat.encode(messages, add_generation_prompt=prompt) == expected
