"""Completions of several messages: only what the assistant writes is scored."""

import json

import numpy as np
import pytest

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.packing.batch import CHOSEN, REJECTED
from jaxdpo.data.packing.layout import pack_batch
from jaxdpo.data.packing.plan import BatchShape
from jaxdpo.data.pairs import PreferencePair, TokenizedPair, scored_tokens
from jaxdpo.data.reading.reports import TokenizeReport
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.pair_store import PairWriter, open_pairs

USER = {"role": "user", "content": "Weather?"}
DONE = {"role": "assistant", "content": "It is 4°C."}
NO = {"role": "assistant", "content": "No idea."}
TOOLS = tuple({"type": "function", "function": {"name": name}} for name in ("look", "ask"))


def call(*names):
    functions = ({"type": "function", "function": {"name": n, "arguments": {}}} for n in names)
    return {"role": "assistant", "tool_calls": list(functions)}


def tool(text):
    return {"role": "tool", "content": text}


def scored_text(chat, ids, unscored):
    """The scored tokens as text, unscored spans as ‖."""
    said, at = "", 0
    for begin, end in [*unscored.reshape(-1, 2), (len(ids), len(ids))]:
        said += chat.tokenizer.decode(ids[at:begin]) + ("‖" if end > begin else "")
        at = end
    return said


@pytest.fixture
def chat(make_tokenizer):
    return Chat(make_tokenizer("bytes", "qwen"))


def written(name):
    return f'\n<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call><|im_end|>'


def test_what_tools_answer_is_not_scored(chat):
    several = (call("look"), tool("4°C <|im_end|>"), call("ask"), tool("sure"), DONE)
    pair = PreferencePair((USER,), several, (NO,), "TRAIN", TOOLS)
    tokens = chat.encode_pair(pair)
    said = scored_text(chat, tokens.chosen_ids, tokens.chosen_unscored)
    assert said == f"{written('look')}‖{written('ask')}‖It is 4°C.<|im_end|>"
    assert tokens.rejected_unscored.tolist() == []
    # All of it is seen by the model, as the template writes it.
    text = chat.tokenizer.decode([*tokens.prompt_ids, *tokens.chosen_ids])
    assert "<tool_response>\n4°C <|im_end|>\n</tool_response>" in text
    swapped = chat.encode_pair(PreferencePair((USER,), (NO,), several, "TRAIN", TOOLS))
    assert np.array_equal(swapped.rejected_unscored, tokens.chosen_unscored)


def test_two_answers_to_one_message_by_the_assistant(chat):
    several = (call("look", "ask"), tool("4"), tool("5"), DONE)
    tokens = chat.encode_pair(PreferencePair((USER,), several, (NO,), "TRAIN", TOOLS))
    said = scored_text(chat, tokens.chosen_ids, tokens.chosen_unscored)
    assert said.count("‖") == 1
    assert said.endswith("‖It is 4°C.<|im_end|>")


@pytest.mark.parametrize("template", ["chatml", "llama3", "gemma", "mistral", "phi3", "plain"])
def test_messages_one_after_the_other_in_every_style(make_tokenizer, template):
    chat = Chat(make_tokenizer("flagged" if template == "phi3" else "bytes", template))
    one, two = ({"role": "assistant", "content": text} for text in ("one", "two"))
    tokens = chat.encode_pair(PreferencePair((USER,), (one, two), (NO,), "TRAIN"))
    alone = chat.encode_pair(PreferencePair((USER,), (one,), (NO,), "TRAIN"))
    parts = np.split(tokens.chosen_ids, tokens.chosen_unscored)
    if template == "plain":
        # This template ends nothing within a conversation.
        assert chat.tokenizer.decode(parts[0]) == " one\n"
    else:
        assert parts[0].tolist() == alone.chosen_ids.tolist()
    last = chat.tokenizer.decode(parts[-1], skip_special_tokens=True)
    assert isinstance(last, str) and last.strip() == "two"


def test_a_template_that_rewrites_earlier_messages_is_refused(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    shortened = tokenizer.chat_template.replace(
        "m['content']", "(m['content'] if loop.last or m.role != 'assistant' else '(earlier)')"
    )
    chat = Chat(tokenizer, shortened)
    with pytest.raises(BadPair, match=r"\[turns-rewritten\]"):
        chat.encode_pair(PreferencePair((USER,), (DONE, NO), (NO,), "TRAIN"))


def test_unscored_tokens_are_seen_and_not_scored():
    pair = TokenizedPair(
        *(np.array(ids, np.int32) for ids in ([1, 2], [3, 4, 5, 6, 7], [8, 9], [1, 3], [0, 1]))
    )
    shape = BatchShape(rows=1, row_length=12, scores=8)
    for share in (True, False):
        batch = pack_batch([pair], [[0]], shape, share_prefix=share)
        rejected_from = 7 if share else 9
        last = 1 if share else 8
        assert batch.tokens[0, :7].tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert batch.score_target[0].tolist() == [3, 6, 7, 9, 0, 0, 0, 0]
        assert batch.score_index[0].tolist() == [1, 4, 5, rejected_from, 0, 0, 0, 0]
        assert batch.score_branch[0, :4].tolist() == [CHOSEN] * 3 + [REJECTED]
        assert batch.tokens[0, last] == 2
    assert scored_tokens(3, np.zeros(0, np.int32)).tolist() == [0, 1, 2]


def test_spans_and_scores_are_stored(tmp_path):
    pair = TokenizedPair(
        *(np.array(ids, np.int32) for ids in ([1, 2], [3, 4, 5], [8, 9], [1, 2], []))
    )
    fingerprints = set()
    for name, stored, scores in (
        ("a", pair, (2.5, 1.0)),
        ("b", pair, (2.5, 2.0)),
        ("c", pair._replace(chosen_unscored=np.array([0, 2], np.int32)), (2.5, 1.0)),
    ):
        with PairWriter(tmp_path / name, name) as writer:
            writer.add(stored, "f:1", scores=scores)
            writer.finish(TokenizeReport(1))
        opened = open_pairs(tmp_path / name, name)
        assert opened is not None and opened.scores is not None
        assert [ids.tolist() for ids in opened[0]] == [ids.tolist() for ids in stored]
        assert opened.lengths.tolist() == [[2, 3, 2]]
        assert opened.scores.tolist() == [list(scores)]
        fingerprints.add(opened.fingerprint)
    assert len(fingerprints) == 3


def test_variables_for_the_template_and_reasoning(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    template = (
        "{% if think %}{{ 'think ' + think }}{% endif %}{% for m in messages %}"
        "{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}"
        "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = Chat(tokenizer, template)
    thought = {**DONE, "reasoning_content": "hm </think>"}
    kwargs = {"think": "hard <|im_start|>"}
    pair = PreferencePair((USER,), (thought,), (NO,), "TRAIN", template_kwargs=kwargs)
    tokens = chat.encode_pair(pair)
    controls = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<think>", "</think>"])
    all_ids = [*tokens.prompt_ids, *tokens.chosen_ids]
    assert [all_ids.count(id) for id in controls] == [2, 1, 1]
    assert tokenizer.decode(all_ids).startswith("think hard <|im_start|><|im_start|>user")
    with pytest.raises(BadPair, match=r"does not know the field reasoning_content"):
        Chat(tokenizer).encode_pair(pair)


def test_older_calls_and_parts_read_as_the_newer(tmp_path):
    from jaxdpo.data.config import DataConfig
    from jaxdpo.data.reading.reader import read_pairs

    function = {"name": "look", "arguments": "{}"}
    older = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": t} for t in ("Wea", "ther?")]},
            {"role": "assistant", "content": None, "function_call": function},
            {"role": "function", "name": "look", "content": "4"},
            DONE,
        ],
        "rejected_message": NO,
        "functions": [{"name": "look"}, {"name": "ask"}],
    }  # fmt: skip
    (tmp_path / "a.jsonl").write_text(json.dumps(older))
    [pair] = read_pairs(str(tmp_path / "a.jsonl"), DataConfig(path="", test_fraction=0)).pairs
    assert pair.prompt == (USER, call("look"), {**tool("4"), "name": "look"})
    assert pair.tools == TOOLS
