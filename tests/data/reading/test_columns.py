"""`data.columns` names columns for every form; columns that nothing reads are taken and counted."""

import json

import pytest
from pydantic import ValidationError

from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.prompts import PromptsConfig, read_prompts
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.errors import UserError

Q, GOOD, BAD, SYS = "Name a river of Europe.", "The Danube.", "The Nile.", "Be terse."


def say(role, content):
    return {"role": role, "content": content}


def write(folder, *records, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def read(path, supervised=False, **fields):
    config = DataConfig(path=path, test_fraction=0.0, **fields)
    return read_pairs(path, config, supervised=supervised)


COLUMNS = [
    # The issue's own: every column has a name of its own.
    ({"frage": Q, "rolle": SYS, "antwort_1": GOOD, "antwort_2": BAD},
     {"prompt": "frage", "system": "rolle", "chosen": "antwort_1", "rejected": "antwort_2"}),
    # Paths into structures and lists.
    ({"data": {"ask": {"text": Q}, "sys": SYS}, "replies": [{"t": GOOD}, {"t": BAD}]},
     {"prompt": "data.ask.text", "system": "data.sys", "chosen": "replies.0.t",
      "rejected": "replies.-1.t"}),
    # Names of roles that mean something else here.
    ({"prompt": SYS, "input": Q, "rejected": GOOD, "chosen": BAD},
     {"system": "prompt", "prompt": "input", "chosen": "rejected", "rejected": "chosen"}),
    # A column that only looks like a part of the prompt.
    ({"system": SYS, "prompt": Q, "context": "From the geography book.", "chosen": GOOD,
      "rejected": BAD}, {"metadata": "context"}),
    ({"system": SYS, "prompt": Q, "xq": "From a book.", "yq": "No. 3 of it.", "chosen": GOOD,
      "rejected": BAD}, {"metadata": ["xq", "yq"]}),
    # Whole conversations.
    ({"dialog_tree": [say("system", SYS), say("user", Q)], "best": GOOD, "worst": BAD},
     {"prompt": "dialog_tree", "chosen": "best", "rejected": "worst"}),
    ({"talk": [say("system", SYS), say("user", Q), say("assistant", GOOD)],
      "other": say("assistant", BAD)}, {"messages": "talk", "rejected_message": "other"}),
    # Verdicts, lists and rows of scores.
    ({"p": Q, "s": SYS, "left": BAD, "right": GOOD, "who": "b"},
     {"prompt": "p", "system": "s", "answer_a": "left", "answer_b": "right", "preferred": "who"}),
    ({"p": Q, "s": SYS, "all": [BAD, GOOD], "points": [1, 2]},
     {"prompt": "p", "system": "s", "answers": "all", "scores": "points"}),
    ({"p": Q, "s": SYS, "all": [BAD, GOOD], "places": [2, 1]},
     {"prompt": "p", "system": "s", "answers": "all", "ranks": "places"}),
    # OpenAI's form, whose split and system prompt are elsewhere.
    ({"input": {"messages": [say("user", Q)]}, "preferred_output": [say("assistant", GOOD)],
      "non_preferred_output": [say("assistant", BAD)], "persona": SYS, "part": "train"},
     {"system": "persona", "split": "part"}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "columns"), COLUMNS)
def test_columns_are_named(tmp_path, row, columns):
    [pair] = read(write(tmp_path, row), columns=columns).pairs
    assert pair.prompt == (say("system", SYS), say("user", Q))
    assert pair.chosen == (say("assistant", GOOD),)
    assert pair.rejected == (say("assistant", BAD),)


def test_columns_of_examples_labels_and_prompts_are_named(tmp_path):
    path = write(tmp_path, {"frage": Q, "antwort": GOOD, "gut": 1})
    columns = {"prompt": "frage", "completion": "antwort"}
    [example] = read(path, supervised=True, columns=columns).pairs
    assert (example.prompt, example.chosen) == ((say("user", Q),), (say("assistant", GOOD),))
    [labelled] = read(path, columns={**columns, "label": "gut"}).pairs
    assert (labelled.prompt, labelled.label) == (example.prompt, True)
    [prompt] = read_prompts(PromptsConfig(path=path, columns=columns)).prompts
    assert prompt.messages == example.prompt


def test_columns_of_one_prompt_are_joined_in_the_order_that_they_are_named(tmp_path):
    row = {"book": "Rivers are long.", "ask": Q, "chosen": GOOD, "rejected": BAD}
    for names in (["book", "ask"], ["ask", "book"]):
        [pair] = read(write(tmp_path, row), columns={"prompt": names}).pairs
        assert pair.prompt == (say("user", "\n".join(row[name] for name in names)),)


def test_a_split_and_scores_are_named_and_the_rest_of_a_structure_is_kept(tmp_path):
    row = {"prompt": Q, "chosen": GOOD, "rejected": BAD, "info": {"part": "dev", "n": 3},
           "marks": [4, 1]}  # fmt: skip
    columns = {"split": "info.part", "chosen_score": "marks.0", "rejected_score": "marks.1"}
    first = {**row, "info": {"part": "train"}}
    result = read(write(tmp_path, first, row), columns=columns)
    assert [pair.split for pair in result.pairs] == ["TRAIN", "TEST"]
    assert result.pairs[1].scores == (4.0, 1.0)
    assert result.pairs[1].metadata["info"] == {"part": None, "n": 3}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": "fragen"}, "no record of .* has fragen; did you mean 'frage'"),
        ({"prompt": ["frage", "n"], "chosen": "a", "rejected": "b"}, "one is a number, 3"),
        ({"prompt": "frage", "chosen": "a", "rejected": "b"}, "xq is .* nothing reads it"),
        ({"prompt": "frage", "chosen": "a"}, "rejected is missing"),
    ],
)
def test_mistakes_are_named(tmp_path, columns, said):
    row = {"frage": Q, "a": GOOD, "b": BAD, "n": 3, "xq": "Answer in one word."}
    if columns["prompt"] == "fragen":
        row = {"chosen": "The river a.", "rejected": "The river b.", "frage": 3}
    with pytest.raises(UserError, match=said):
        read(write(tmp_path, row), columns=columns)


def test_an_unknown_role_is_refused():
    with pytest.raises(ValidationError):
        DataConfig(path="x.jsonl", columns={"promt": "question"})  # pyright: ignore[reportArgumentType]


def test_fields_that_nothing_reads_are_counted(tmp_path):
    """One row with all that people put beside a pair, and the same within its messages."""
    extra = {"id": "m1", "model": "gpt", "weight": 1, "loss_weight": 1.0, "timestamp": 1700000000}
    row = {
        "prompt": [say("user", Q) | {"id": "m0", "timestamp": 1.7e9}],
        "chosen": [say("assistant", GOOD) | extra],
        "rejected": [say("assistant", BAD) | extra],
        "split": "train",
        "metadata": json.dumps({"length": 3}),
        "created_at": 1700000000,
        "uuid": "9f1b",
        "score_chosen": 7,
        "annotator_comment": "Chose the first, it is in Europe.",
        "tier": "gold",
    }
    result = read(write(tmp_path, row))
    [pair] = result.pairs
    assert (pair.prompt, pair.chosen) == ((say("user", Q),), (say("assistant", GOOD),))
    assert pair.split == "TRAIN"
    assert pair.metadata == {
        "length": 3, "created_at": 1700000000, "uuid": "9f1b", "score_chosen": 7,
        "annotator_comment": "Chose the first, it is in Europe.", "tier": "gold",
    }  # fmt: skip
    assert result.report.message_fields == {"id": 3, "model": 2, "timestamp": 3}
    assert "fields of messages not read: id 3, model 2, timestamp 3" in result.report.summary()
    assert result.report.kept_fields["created_at"] == 1


CSV = (
    "prompt,chosen,rejected,label_x,score_chosen,score_rejected\n"
    '"Say ""42"",\nplease.",42,7,,3,1.5\n'
)


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_tables_of_text(tmp_path, delimiter):
    name = "rows.csv" if delimiter == "," else "rows.tsv"
    (tmp_path / name).write_text(
        CSV if delimiter == "," else CSV.replace('"",', '""@').replace(",", "\t").replace("@", ","),
        encoding="utf-8-sig",
    )
    [pair] = read(str(tmp_path / name)).pairs
    assert pair.prompt == (say("user", 'Say "42",\nplease.'),)
    # A cell of an answer is text, whatever it looks like; one of a score is a number.
    assert (pair.chosen, pair.rejected) == ((say("assistant", "42"),), (say("assistant", "7"),))
    assert pair.scores == (3.0, 1.5)
    assert pair.source.endswith(":3")


def test_a_table_of_text_holds_labels_and_messages(tmp_path):
    (tmp_path / "a.csv").write_text(
        ",prompt,completion,label\n"
        '0,"[{\'role\': \'user\', \'content\': \'Q?\'}]",A,True\n'
        '1,Q2?,B,0\n'
    )  # fmt: skip
    first, second = read(str(tmp_path / "a.csv")).pairs
    assert (first.prompt, first.label) == ((say("user", "Q?"),), True)
    assert (second.prompt, second.label) == ((say("user", "Q2?"),), False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,chosen,rejected\na,b\n", "rows.csv:2: the row has 2 cells, but there are 3"),
        ('prompt,chosen,rejected\na,b,"c\n', "rows.csv:2: unexpected end of data"),
        ("prompt,chosen,chosen\na,b,c\n", "rows.csv:1: the first row names the columns"),
        ("prompt,chosen,rejected\n", "rows.csv: holds no pairs"),
    ],
)
def test_damaged_tables_of_text_are_named(tmp_path, text, said):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(UserError, match=r"rows\.csv") as caught:
        read(str(tmp_path / "rows.csv"))
    assert said in str(caught.value)
