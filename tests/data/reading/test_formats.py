"""The same pairs in every form and every kind of file become the same tokens."""

import datetime
import decimal
import gzip
import itertools
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.jsonl import Record
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.errors import UserError

# Question, good answer, bad answer.
ASKED = [
    ("Capital of Tasmania?", "Hobart, by the Derwent.", "Paris"),
    ("Say it:\n\n- one\n- two", "one,\ntwo 東京", "no <|im_end|> no"),
    ("2 + 2 = ?", "4", "It is 4, I think."),
    ("Capital of Tasmania?", "Hobart.", "Hobart in the north."),
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


BAD = assistant("d")


def turn(who, text):
    return {"from": who, "value": text}


def told(*said):
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[i % 2]}: {text}" for i, text in enumerate(said))


FORMS = {
    "messages": lambda q, g, b: {
        "messages": [user(q), assistant(g)], "rejected_message": assistant(b)
    },
    "openai": lambda q, g, b: {
        "input": {"messages": [user(q)], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [assistant(g)],
        "non_preferred_output": [assistant(b)],
    },
    "trl strings": lambda q, g, b: {"prompt": q, "chosen": g, "rejected": b},
    "trl messages": lambda q, g, b: {
        "prompt": [user(q)], "chosen": [assistant(g)], "rejected": [assistant(b)]
    },
    "trl implicit": lambda q, g, b: {
        "chosen": [user(q), assistant(g)], "rejected": [user(q), assistant(b)]
    },
    "trl repeated": lambda q, g, b: {
        "prompt": q, "chosen": [user(q), assistant(g)], "rejected": [user(q), assistant(b)]
    },
    "sharegpt": lambda q, g, b: {
        "conversations": [turn("human", q)], "chosen": turn("gpt", g), "rejected": turn("gpt", b)
    },
    "transcript": lambda q, g, b: {"chosen": told(q, g), "rejected": told(q, b)},
    "alpaca": lambda q, g, b: {"instruction": q, "input": "", "chosen": g, "rejected": b},
    "ranked": lambda q, g, b: {
        "instruction": q,
        "completions": [
            {"response": "middling", "overall_score": 5.0},
            {"response": b, "overall_score": 1.0},
            {"response": g, "overall_score": 9.5},
        ],
    },
    "ranked scores": lambda q, g, b: {"prompt": [user(q)], "responses": [b, g], "scores": [1, 2]},
}  # fmt: skip


@pytest.fixture
def chat(make_tokenizer):
    return Chat(make_tokenizer("bytes", "chatml"))


def write(file: Path, records) -> str:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(file)


def read(path, **changes):
    return read_pairs(path, DataConfig(path=path, test_fraction=0.0, **changes))


def ids_of(chat, path, **changes):
    pairs = read(path, **changes).pairs
    return [[ids.tolist() for ids in chat.encode_pair(pair)[:3]] for pair in pairs]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_pairs_in_every_form_have_the_same_ids(chat, tmp_path, form):
    path = write(tmp_path / "pairs.jsonl", [FORMS[form](*asked) for asked in ASKED])
    expected = []
    for question, good, bad in ASKED:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        for text in (prompt, f"{good}<|im_end|>", f"{bad}<|im_end|>"):
            # What the bad answer of the second pair spells is text.
            parts = text.split(" <|im_end|> ")
            ids = [chat.tokenizer.encode(part, add_special_tokens=False) for part in parts]
            expected.append(ids[0] if len(parts) == 1 else None)
    found = ids_of(chat, path)
    assert found == ids_of(chat, path, format=form.split()[0])
    for ours, theirs in zip(itertools.chain(*found), expected, strict=True):
        assert theirs is None or ours == theirs
    native = write(tmp_path / "native.jsonl", [FORMS["messages"](*asked) for asked in ASKED])
    assert found == ids_of(chat, native)


def test_ids_that_were_made_elsewhere_are_taken_as_they_are(chat, tmp_path):
    native = write(tmp_path / "native.jsonl", [FORMS["messages"](*asked) for asked in ASKED])
    expected = ids_of(chat, native)
    for names in (
        ("prompt_ids", "chosen_ids", "rejected_ids"),
        ("prompt_input_ids", "chosen_input_ids", "rejected_input_ids"),
    ):
        records = [dict(zip(names, ids, strict=True)) for ids in expected]
        path = write(tmp_path / "ids.jsonl", records)
        assert ids_of(chat, path) == expected
        config = DataConfig(path=path, cache_dir=str(tmp_path / "cache"), max_length=32)
        loaded = load_pairs(config, chat)
        assert sum(len(pairs) for pairs in loaded.splits.values()) == len(ASKED)
        # The first and the last ask the same.
        splits = {pair.split for pair in read_pairs(path, config).pairs[::3]}
        assert len(splits) == 1
    too_high = write(tmp_path / "high.jsonl", [dict(zip(names, [[1], [2], [10**6]], strict=True))])
    with pytest.raises(UserError, match=r"high.jsonl:1: rejected_ids holds 1000000, but the tok"):
        load_pairs(DataConfig(path=too_high, test_fraction=0, cache_dir=str(tmp_path)), chat)


def sources(folder: Path, records):
    """Each kind of file that holds these records."""
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    array = json.dumps(records, indent=2).encode()
    # from_pylist would take the first row's columns alone.
    keys = dict.fromkeys(key for record in records for key in record)
    table = pa.table({key: [record.get(key) for record in records] for key in keys})
    for name in ("folder", "saved"):
        (folder / name).mkdir()
    write(folder / "folder" / "a.jsonl", records[:2])
    pq.write_table(table.slice(2), folder / "folder" / "b.parquet")
    (folder / "folder" / "README.md").write_text("about")
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (folder / "a.gz").write_bytes(gzip.compress(lines))
    packed = pa.Codec("zstd").compress(lines, asbytes=True)
    (folder / "a.zst").write_bytes(packed)
    (folder / "a.json").write_bytes(b"\xef\xbb\xbf\n" + array + b"\n \n")
    (folder / "flat.json").write_text(json.dumps(records))
    (folder / "array.json.gz").write_bytes(gzip.compress(array))
    pq.write_table(table, folder / "a.parquet", row_group_size=3)
    with pa.ipc.new_file(folder / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(folder / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    import datasets

    datasets.Dataset(table).save_to_disk(str(folder / "saved"))
    names = ["a.jsonl", "a.gz", "a.zst", "a.json", "flat.json", "array.json.gz", "a.parquet"]
    names += ["file.arrow", "stream.arrow", "folder", "saved", "folder/*"]
    return [str(folder / name) for name in names]


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    ],
}
ANSWERED = {"role": "tool", "content": "4°C", "tool_call_id": "c"}


def test_every_kind_of_file_reads_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    records = [FORMS["trl messages"](*asked) for asked in ASKED]
    records[1] |= {"tools": [TOOL], "prompt": [user("q"), CALLING, ANSWERED]}
    records[2] |= {
        "chosen": [CALLING, ANSWERED, assistant("4")],
        "chosen_score": 3,
        "rejected_score": 1,
    }
    expected = None
    for path in sources(tmp_path, records):
        if path.endswith("*"):
            (tmp_path / "folder" / "README.md").unlink()
        pairs = read(path).pairs
        said = [(p.prompt, p.chosen, p.rejected, p.tools, p.scores) for p in pairs]
        expected = said if expected is None else expected
        assert said == expected, path
    assert expected is not None
    assert expected[1][3] == (TOOL,)
    assert expected[2][4] == (3.0, 1.0)
    assert [message["role"] for message in expected[2][1]] == ["assistant", "tool", "assistant"]


def test_a_data_set_by_name_is_loaded_with_its_config_and_split(tmp_path, monkeypatch):
    records = [FORMS["trl strings"](*asked) for asked in ASKED]
    here = tmp_path / "org" / "name"
    here.mkdir(parents=True)
    write(here / "train.jsonl", records[:3])
    write(here / "test.jsonl", records[3:])
    from jaxdpo.data.reading.sources import Source, find_sources, read_source

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name, expected in ((f"{here}::train", records[:3]), (f"{here}:default:test", records[3:])):
        rows = list(read_source(Source(name, hub=True)))
        assert [row.value for row in rows if isinstance(row, Record)] == expected
        assert [row.line for row in rows] == list(range(1, len(expected) + 1))
    with pytest.raises(UserError, match=r"has the splits (train, test|test, train); name one"):
        list(read_source(Source(str(here), hub=True)))
    assert find_sources("some/name:config:split") == [Source("some/name:config:split", hub=True)]


def test_the_form_is_seen_from_all_lines_and_mixed_forms_are_refused(tmp_path):
    first = {"prompt": "no answers here"}
    path = write(tmp_path / "a.jsonl", [first, FORMS["sharegpt"](*ASKED[0])])
    with pytest.raises(UserError, match=r"a.jsonl:1: conversations is missing"):
        read(path)
    path = write(tmp_path / "b.jsonl", [FORMS[form](*ASKED[0]) for form in ("openai", "alpaca")])
    with pytest.raises(UserError, match=r"openai \(first at line 1\), alpaca \(first at line 2\)"):
        read(path)
    with pytest.raises(UserError, match=r"b.jsonl:2: preferred_output is missing.*\[missing-key\]"):
        read(path, format="openai")
    path = write(tmp_path / "c.jsonl", [{"question": 1, "answer": 2}])
    with pytest.raises(UserError, match=r"records have answer, question: no known form"):
        read(path)


def test_fields_of_the_user_and_scores_are_kept(tmp_path):
    record = FORMS["trl strings"](*ASKED[0])
    own = {"source": "x", "metadata": {"a": 1}, "score_chosen": 8, "score_rejected": 2.5}
    result = read(write(tmp_path / "a.jsonl", [{**record, **own}, {**record, "margin": 2}]))
    assert result.pairs[0].metadata == {"source": "x", "a": 1}
    assert [pair.scores for pair in result.pairs] == [(8.0, 2.5), (2.0, 0.0)]
    assert result.report.kept_fields == {"source": 1}
    assert "fields kept as metadata: source 1" in result.report.summary()
    with pytest.raises(UserError, match=r"the score of .* write a number \[score-type\]"):
        read(write(tmp_path / "a.jsonl", [{**record, "score_chosen": "8", "score_rejected": 1}]))
    # One score alone says nothing of the two answers: it is the user's own field.
    [pair] = read(write(tmp_path / "a.jsonl", [{**record, "score_chosen": 8}])).pairs
    assert (pair.scores, pair.metadata) == (None, {"score_chosen": 8})


def test_scores_stand_beside_the_tokens(chat, tmp_path):
    records = [FORMS["ranked"](*ASKED[0]), FORMS["ranked"](*ASKED[1])]
    records[1] |= {"completions": records[1]["completions"][1:]}
    config = DataConfig(
        path=write(tmp_path / "a.jsonl", records), test_fraction=0, cache_dir=str(tmp_path)
    )
    train = load_pairs(config, chat).splits["TRAIN"]
    assert train.scores.tolist() == [[9.5, 1.0], [9.5, 1.0]]
    # As margins and weights are read.
    assert train.metadata(0) == {"chosen_score": 9.5, "rejected_score": 1.0, "score_margin": 8.5}
    own = {**FORMS["trl strings"](*ASKED[0]), "score_margin": 3}
    path = write(tmp_path / "b.jsonl", [own])
    config = config.model_copy(update={"path": path})
    assert load_pairs(config, chat).splits["TRAIN"].metadata(0) == {"score_margin": 3}


def test_ranked_lists_make_all_pairs_above_a_margin(tmp_path):
    completions = [
        {"text": name, "score": score} for name, score in zip("abcd", (1, 5, 3, 5), strict=True)
    ]
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "completions": completions}])

    def answers(**changes):
        pairs = read(path, **changes).pairs
        return sorted(p.chosen[0]["content"] + p.rejected[0]["content"] for p in pairs)

    assert answers() == ["ba"]
    assert answers(ranked_margin=2) == ["ba", "bc", "ca", "da", "dc"]
    assert answers(ranked_margin=3) == ["ba", "da"]
    with pytest.raises(UserError, match=r"all scores differ by less than 5.*\[no-preference\]"):
        read(path, ranked_margin=5)
    plain = write(tmp_path / "b.jsonl", [FORMS["messages"](*ASKED[0])])
    with pytest.raises(UserError, match=r"data.ranked_margin is 1, but .* no ranked lists"):
        read(plain, ranked_margin=1)


def test_sources_are_mixed_by_weight(tmp_path):
    many = [FORMS["trl strings"](f"Question {i}?", "yes", "no") for i in range(400)]
    paths = [write(tmp_path / f"{name}.jsonl", many) for name in "ab"]
    weights = dict(zip(paths, (2.25, 0.5), strict=True))
    config = DataConfig(path=weights, test_fraction=0.2)
    result = read_pairs(weights, config)
    count = Counter((pair.source.split(":")[0], pair.split) for pair in result.pairs)
    train = sum(1 for pair in read_pairs(paths[0], config).pairs if pair.split == "TRAIN")
    # Binomial over some 320 prompts: five deviations.
    assert abs(count[paths[0], "TRAIN"] - 2.25 * train) < 5 * (train * 0.25 * 0.75) ** 0.5
    assert abs(count[paths[1], "TRAIN"] - 0.5 * train) < 5 * (train * 0.25) ** 0.5
    assert count[paths[0], "TEST"] == count[paths[1], "TEST"] == 400 - train
    half = {p.prompt[0]["content"] for p in result.pairs if p.source.startswith(paths[1])}
    shuffled = write(tmp_path / "b.jsonl", many[::-1][:-50])
    again = read_pairs({shuffled: 0.5}, config).pairs
    assert {p.prompt[0]["content"] for p in again} == half - {
        record["prompt"] for record in many[:50]
    }


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"chosen": "same start a", "rejected": "other"}, "no words in common"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), BAD]}, "no mes"),
        ({"prompt": "q", "chosen": [user("r"), assistant("b")], "rejected": [assistant("d")]},
         "no message in common"),
        ({"prompt": "q", "chosen": [], "rejected": "x"}, "chosen is an empty list"),
        ({"prompt": "q", "chosen": "a", "rejected": [assistant("b"), user("c")]},
         'rejected[1].role is "user"'),
        ({"prompt": "q", "chosen": "a", "rejected": [assistant("b"), user("c"), assistant("d")]},
         "[completion-role]"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "rejected.content is only white space"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "rejected equals chosen"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "chat_template_kwargs": {"tools": 1}},
         "chat_template_kwargs.tools is not for a record"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "tools": "["}, 'tools is the string "["'),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "split": "tain"}, "did you mean 'TRAIN'"),
        ({"conversations": [turn("robot", "q")], "chosen": "a", "rejected": "b"},
         'conversations[0].from is "robot"'),
        ({"conversations": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "is no turn"),
        ({"conversations": [turn("human", "q"), turn("function_call", "x")], "chosen": "a",
          "rejected": "b"}, "conversations[1].value is no call"),
        ({"input": {"messages": [user("q")], "toolz": []}, "preferred_output": [assistant("a")],
          "non_preferred_output": [assistant("b")]}, "did you mean 'tools'?"),
        ({"input": "q", "preferred_output": [], "non_preferred_output": []}, "holds no messages"),
        ({"prompt": "q", "completions": [{"text": "a", "score": 1}]}, "holds 1; a preference"),
        ({"prompt": "q", "completions": ["a", "b"]}, "completions[0] has no score"),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1]}, "scores must be a list of 2"),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1, 1]}, "all scores are equal"),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1, "2"]}, "write a number"),
        ({"instruction": "q", "chosen": 1, "rejected": "b"}, "chosen is a number"),
        ({"prompt_ids": [1], "chosen_ids": [], "rejected_ids": [2]}, "chosen_ids is empty"),
        ({"prompt_ids": [1], "chosen_ids": [True], "rejected_ids": [2]}, "list of token ids"),
        ({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [2]}, "are the same ids"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_any_form_is_said_by_line(tmp_path, record, said):
    path = write(tmp_path / "a.jsonl", [record])
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:1: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "answers"),
    [
        ("The sky is blue", "The sky is green", "The sky is", ("blue", "green")),
        # A character-wise prefix would split "blue".
        ("The sky is blue", "The sky is black", "The sky is", ("blue", "black")),
        ("The sky is blue", "The sky is blue and vast", "The sky is", ("blue", "blue and vast")),
    ],
)
def test_strings_share_whole_words(tmp_path, chosen, rejected, prompt, answers):
    path = write(tmp_path / "a.jsonl", [{"chosen": chosen, "rejected": rejected}])
    [pair] = read(path).pairs
    assert pair.prompt[0]["content"] == prompt
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == answers


def test_longer_conversations(tmp_path):
    talk = told("a", "b", "c", "good"), told("a", "b", "c", "bad")
    records = {
        "transcript": {"chosen": talk[0], "rejected": talk[1]},
        "alpaca": {"instruction": "c", "history": [["a", "b"]],
                   "chosen": "good", "rejected": "bad"},
        "sharegpt": {
            "conversations": [turn("human", "a"), turn("gpt", "b"), turn("human", "c")],
            "chosen": "good", "rejected": "bad",
        },
    }  # fmt: skip
    for record in records.values():
        [pair] = read(write(tmp_path / "a.jsonl", [record])).pairs
        assert [m["content"] for m in pair.prompt] == ["a", "b", "c"]
        assert [m["role"] for m in pair.prompt] == ["user", "assistant", "user"]
        assert pair.chosen == (assistant("good"),)
    two = {
        "instruction": "Sum up.",
        "input": "Long text.",
        "system": "Be brief.",
        "chosen": "a",
        "rejected": "b",
    }
    [pair] = read(write(tmp_path / "a.jsonl", [two])).pairs
    assert [m["content"] for m in pair.prompt] == ["Be brief.", "Sum up.\nLong text."]


ARRAYS = [
    (b"[", "a.json:1: the array is cut off after here"),
    (b'[{"a": 1}', "a.json:1: the array is cut off after here"),
    (b'[\n{"a": "]', "a.json:1: the array is cut off after here"),
    (b'[{"a": 1},\n]', "a.json:2: an element is missing"),
    (b'[\n,{"a": 1}]', "a.json:2: an element is missing"),
    (b'[{"a": 1}]\n\n[]', "a.json:3: something follows the array"),
    (b"[}]", "a.json:1: a bracket is closed"),
    (b"[]", "holds no pairs, nothing"),
    (b'[\n\n1,\n\n"x"]', "a.json:3: the line holds a number, not an object"),
    (b'[\n{"a": 1, "a": 2}]', 'a.json:2: the key "a" stands twice'),
    (b'[{"a": 1} {"b": 2}]', "a.json:1: a second object starts"),
]


@pytest.mark.parametrize(("content", "said"), ARRAYS)
def test_damaged_arrays_are_named_by_line(tmp_path, monkeypatch, content, said):
    (tmp_path / "a.json").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    for chunk in (1, 2**20):
        monkeypatch.setattr("jaxdpo.data.reading.json_array._CHUNK", max(chunk, 4))
        with pytest.raises(UserError) as caught:
            read("a.json")
        assert said in str(caught.value)


def test_an_array_is_read_alike_in_chunks_of_any_size(tmp_path, monkeypatch):
    records = [FORMS["trl strings"](*asked) for asked in ASKED]
    records[0]["chosen"] = 'quotes \\" and ] } , [ {'
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    expected = read(str(tmp_path / "a.json")).pairs
    assert [p.chosen[0]["content"] for p in expected] == [r["chosen"] for r in records]
    assert [p.source.split(":")[-1] for p in expected] == ["2", "7", "12", "17"]
    for chunk in (4, 7, 64):
        monkeypatch.setattr("jaxdpo.data.reading.json_array._CHUNK", chunk)
        assert read(str(tmp_path / "a.json")).pairs == expected


def test_damaged_tables_and_packed_files_are_named(tmp_path):
    records = [FORMS["trl strings"](*asked) for asked in ASKED]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.jsonl.zst").write_bytes(pa.Codec("zstd").compress(lines, asbytes=True))
    for name in ("a.parquet", "a.jsonl.gz", "a.jsonl.zst"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-9])
        with pytest.raises(UserError, match=f"{name}: cannot be read to its end"):
            read(str(tmp_path / name))


def test_columns_of_a_table_that_nothing_reads_never_stop_it(tmp_path):
    records = [FORMS["trl strings"](*asked) for asked in ASKED[:2]]
    moment = datetime.datetime(2026, 11, 27, 8, 30)
    columns = {
        "x": [1.0, float("nan")],
        "infinite": [float("inf"), 2.0],
        "seen_at": [moment, None],
        "day": [moment.date(), None],
        "took": [datetime.timedelta(seconds=3), None],
        "price": [decimal.Decimal("1.25"), None],
        "thumbnail": [b"\1\2", None],
        "chosen_score": [7.5, float("nan")],
    }
    table = pa.table({**pa.Table.from_pylist(records).to_pydict(), **columns})
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = read(str(tmp_path / "a.parquet")).pairs
    assert first.metadata == {
        "x": 1.0,
        "seen_at": "2026-11-27T08:30:00",
        "day": "2026-11-27",
        "took": 3.0,
        "price": 1.25,
        "thumbnail": {"bytes": 2},
        "chosen_score": 7.5,
    }
    assert second.metadata == {"infinite": 2.0}
    assert (first.scores, second.scores) == (None, None)
    # Where bytes stand in a column that is read, the row is refused by name.
    read_columns = {**table.to_pydict(), "rejected": [b"\1", b"\2"]}
    pq.write_table(pa.table(read_columns), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b.parquet:1: rejected\.role is missing"):
        read(str(tmp_path / "b.parquet"))
