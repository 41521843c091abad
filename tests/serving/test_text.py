"""Text that grows: what is sent is never taken back, and is the whole text in the end."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace
from tokenizers.models import WordLevel

from jaxdpo.sampling.answers import before
from jaxdpo.serving.text import GrowingText
from jaxdpo.serving.tool_calls import read_calls

# Tokens are bytes, so characters are written in parts.


def decode(ids):
    return bytes(ids).decode("utf-8", errors="replace")


@given(
    st.lists(st.sampled_from(["a", "é", "世", "🙂", "ab"]), max_size=12).map("".join),
    st.lists(st.text("aé世b", min_size=1, max_size=3), max_size=3),
    st.lists(st.integers(1, 5), min_size=1, max_size=40),
)
def test_pieces_are_the_text_before_the_first_stop(text, stops, sizes):
    ids, growing, sent = list(text.encode()), GrowingText(decode, stops), ""
    while ids and not growing.stopped:
        size = sizes[len(ids) % len(sizes)]
        part, ids = ids[:size], ids[size:]
        piece = growing.add(part, not ids)
        sent += piece
        # Nothing is sent that a later token could change.
        assert text.startswith(sent) and "\ufffd" not in sent
        assert not any(stop in sent for stop in stops)
    if growing.stopped:
        # The first text to be written ends it; which of two comes first may hang on the tokens.
        assert any(text[len(sent) :].startswith(stop) for stop in stops)
    else:
        assert sent == before(stops, text) == text


def test_bytes_that_are_no_text_are_sent_at_the_end():
    growing = GrowingText(decode)
    assert growing.add([97, 0xE4, 0xB8], False) == "a"
    assert growing.add([0x96], False) == "世"
    assert growing.add([0xF0], True) == "\ufffd"


WORDS = Tokenizer(WordLevel({"▁a": 0, "b": 1, "▁é": 2, "<x>": 3, "▁": 4}, unk_token="<x>"))
WORDS.decoder = Metaspace()
WORDS.add_special_tokens(["<x>"])


# Such a decoder drops the space before the first token of whatever it decodes.
@given(st.lists(st.integers(0, 4), min_size=1, max_size=400), st.integers(1, 9))
@settings(max_examples=50)
def test_text_is_that_of_all_tokens_though_few_are_decoded_again(ids, size):
    decoded = []

    def counted(part):
        decoded.append(len(part))
        return WORDS.decode(part)

    growing = GrowingText(counted, ["bbbbbb"])
    pieces = []
    for at in range(0, len(ids), size):
        pieces.append(growing.add(ids[at : at + size], at + size >= len(ids)))
        if growing.stopped:
            break
    assert "".join(pieces) == before(["bbbbbb"], WORDS.decode(ids))
    if not growing.stopped:
        # Each new token comes with a window of some 32 others, and at the end all come once more;
        # all tokens with each new one would be 40,000 of 400.
        assert sum(decoded) <= len(ids) * (2 + 60 / size) + 60


TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {}}}]


def test_calls_are_read_from_the_forms_that_models_write():
    tagged = 'I look.\n<tool_call>\n{"name": "find", "arguments": {"x": "é"}}\n</tool_call>'
    read = read_calls(tagged + tagged[7:], TOOLS)
    assert read.content == "I look."
    assert [call["function"]["name"] for call in read.calls] == ["find", "find"]
    assert json.loads(read.calls[0]["function"]["arguments"]) == {"x": "é"}
    assert len({call["id"] for call in read.calls}) == 2
    llama = read_calls('{"name": "find", "parameters": {"x": 1}}', TOOLS)
    assert llama.content is None
    assert llama.calls[0]["function"] == {"name": "find", "arguments": '{"x": 1}'}
    assert len(read_calls('[{"name": "find", "arguments": {}}]', TOOLS).calls) == 1


def test_what_is_no_call_stays_text():
    for text in (
        "Nothing.",
        '{"name": "erase", "arguments": {}}',
        "<tool_call>{</tool_call>",
        '{"find": 1}',
        "[]",
        "[" * 10_000,
        "",
    ):
        assert read_calls(text, TOOLS) == (text, [])
