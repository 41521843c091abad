import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdpo.data.bad_pair import BadLine, BadPair
from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.jsonl import Record, parse_line, read_records
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.errors import UserError

USER = {"role": "user", "content": "Capital of Tasmania?"}
GOOD = {"role": "assistant", "content": "Hobart"}
BAD = {"role": "assistant", "content": "Paris"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWER = {"role": "tool", "content": "4°C", "tool_call_id": "c1"}


def pair(**changes):
    line = {"messages": [USER, GOOD], "rejected_message": BAD, "split": "TRAIN"}
    line |= changes
    return {key: value for key, value in line.items() if value is not ...}


def text(**changes) -> bytes:
    return json.dumps(pair(**changes), ensure_ascii=False).encode()


def prompt(*messages) -> bytes:
    return text(messages=[*messages, GOOD])


def calls(**changes) -> bytes:
    return prompt(USER, {**CALLING, "tool_calls": [{**CALL, **changes}]}, ANSWER)


# Each: its code, the line, and what the message must say of field, value and remedy.
BAD_LINES = [
    # Not JSON, or more than one value.
    ("line-too-long", b'{"messages": "' + b"a" * 2**24 + b'"}', "longer than 16 MiB"),
    ("invalid-utf8", b'{"messages": "\xff"}', "byte 0xff at column 15 is not UTF-8"),
    ("nul", b'{"a": "\x00"}', "NUL"),
    ("nul", text(metadata={"a": ["b", "\0"]}), "metadata.a[1] holds \\u0000"),
    ("surrogate", b'{"messages": [{"content": "\\ud83d"}]}', "messages[0].content holds \\ud83d"),
    ("surrogate", b'{"\\udc00": 1}', "a key of the line holds \\udc00"),
    ("bad-json", b"{'messages': 1}", "Expecting property name"),
    ("bad-json", b'{"a": 1,}', "at column"),
    ("bad-json", b"[", "JSON array"),
    ("bad-json", b"{", "one JSON object a line"),
    ("bad-json", '\ufeff{"a": 1}'.encode(), "BOM"),
    ("cut-off", text()[:-20], "ends before its object does"),
    ("cut-off", b'{"messages": ', "ends before its object does"),
    ("two-objects", text() + b" " + text(), f"second object starts at column {len(text()) + 2}"),
    ("extra-data", text() + b",", ': ","; remove it'),
    ("duplicate-key", b'{"messages": 1, "messages": 2}', 'key "messages" stands twice'),
    ("not-finite", b'{"metadata": {"a": NaN}}', "NaN is not JSON"),
    ("not-finite", b'{"metadata": {"a": -Infinity}}', "-Infinity is not JSON"),
    ("not-finite", b'{"metadata": {"a": 1e999}}', '"1e999" is out of range'),
    ("not-finite", b'{"metadata": {"a": ' + b"9" * 5000 + b"}}", "5000 digits"),
    ("too-deep", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "64 levels"),
    ("not-an-object", b'["a"]', "holds a list, not an object"),
    ("not-an-object", b"null", "holds null, not an object"),
    ("not-an-object", b'"text"', "holds a string, not an object"),
    # Keys.
    ("missing-key", text(messages=...), "messages is missing"),
    ("missing-key", text(rejected_message=...), "rejected_message is missing"),
    ("missing-key", text(rejected_message=None), "rejected_message is null"),
    ("unknown-key", text(rejected_mesage=BAD), "did you mean 'rejected_message'?"),
    ("unknown-key", text(**{"": 1}), 'unknown key ""'),
    ("unread-text", text(zzz="Be brief."), 'zzz is "Be brief.", which may be a part of what the'),
    # Messages.
    ("messages-type", text(messages="Hobart"), "messages is a string"),
    ("messages-short", text(messages=[GOOD]), "messages holds 1 of at least 2"),
    ("message-type", text(messages=["hi", GOOD]), "messages[0] is a string"),
    ("message-type", text(rejected_message="Paris"), "rejected_message is a string"),
    ("role-missing", prompt({"content": "x"}), "messages[0].role is missing"),
    ("unknown-role", prompt({"role": "human", "content": "x"}), "write 'user'"),
    ("unknown-role", prompt({"role": ["user"], "content": "x"}), 'messages[0].role is ["user"]'),
    ("unknown-message-key", prompt({**USER, "contnet": "x"}), "did you mean 'content'?"),
    ("unknown-message-key", prompt({**USER, "tool_calls": [CALL]}), "not a field of a message by"),
    ("function-call-twice", prompt(USER, {**CALLING, "function_call": {}}), "keep tool_calls"),
    ("tool-call-name", prompt(USER, {**GOOD, "function_call": {}}), "function.name is null"),
    ("message-field-type", prompt({**USER, "name": 3}), "messages[0].name is a number"),
    ("last-not-assistant", text(messages=[USER, USER]), 'messages[1].role is "user"'),
    ("no-user", prompt(GOOD), "no user message"),
    ("system-not-first", prompt(USER, {"role": "system", "content": "x"}), "messages[1].role"),
    ("rejected-role", text(rejected_message=USER), 'rejected_message.role is "user"'),
    # Contents.
    ("content-missing", prompt({"role": "user"}), "messages[0].content is missing"),
    ("content-missing", text(rejected_message={**BAD, "content": None}), "content is null"),
    ("content-type", prompt({**USER, "content": 7}), "messages[0].content is a number, 7"),
    ("content-type", prompt({**USER, "content": True}), "is a boolean, true"),
    ("content-parts", prompt({**USER, "content": [{"type": "text"}]}), "a list of 1 parts"),
    ("content-not-text", prompt({**USER, "content": [{"type": "image_url"}]}), "only text can"),
    ("empty-completion", text(rejected_message={**BAD, "content": ""}), "rejected_message.content"),
    ("empty-completion", text(messages=[USER, {**GOOD, "content": " \n"}]), '" \\n"'),
    ("identical-completions", text(rejected_message=GOOD), 'equals the chosen message, "Hobart"'),
    # Tools.
    ("tool-without-call", prompt(USER, ANSWER), "messages[1].role is 'tool' but no tool call"),
    ("tool-call-unanswered", prompt(USER, CALLING, USER), "messages[2] follows a tool call"),
    ("tool-call-unanswered", prompt(USER, CALLING), '"c1"'),
    ("tool-call-id", prompt(USER, CALLING, {**ANSWER, "tool_call_id": "c2"}), 'open calls ["c1"]'),
    ("tool-calls-type", prompt(USER, {**CALLING, "tool_calls": "look"}), "tool_calls is a string"),
    ("tool-call-type", calls(function="look"), "messages[1].tool_calls[0] is no call"),
    ("tool-call-name", calls(function={"arguments": "{}"}), "function.name is null"),
    ("tool-call-id-type", calls(id=1), "tool_calls[0].id is a number"),
    ("tool-call-arguments", calls(function={"name": "look", "arguments": [1]}), "is a list"),
    ("tools-type", text(tools={"type": "function"}), "tools is an object"),
    ("tool-type", text(tools=[{"type": "function", "name": "look"}]), "tools[0] names no function"),
    # The rest.
    ("bad-split", text(split="half"), "split is \"half\"; write 'TRAIN' or 'TEST'"),
    ("bad-split", text(split=["TRAIN"]), 'split is ["TRAIN"]'),
    ("metadata-type", text(metadata="x"), "metadata is a string"),
]


def test_there_are_at_least_35_kinds_of_bad_line():
    assert len({code for code, _, _ in BAD_LINES}) >= 35


@pytest.mark.parametrize(("code", "line", "said"), BAD_LINES, ids=lambda value: str(value)[:30])
def test_a_bad_line_is_named_with_file_line_code_and_reason(tmp_path, code, line, said):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(text() + b"\n\n" + line + b"\n" + text() + b"\n")
    with pytest.raises(UserError) as caught:
        read_pairs(str(file), DataConfig(path=str(file)))
    first, last = str(caught.value).split("\n")
    assert first.startswith(f"{file}:3: ")
    assert first.endswith(f" [{code}]")
    assert said in first
    assert len(first) < len(str(file)) + 300
    assert last.startswith("1 bad lines")

    rejects = tmp_path / "rejects.jsonl"
    result = read_pairs(str(file), DataConfig(path=str(file), on_error="skip"), rejects)
    assert [p.source for p in result.pairs] == [f"{file}:1", f"{file}:4"]
    assert result.report.rejected == {code: 1}
    [reject] = [json.loads(row) for row in rejects.read_text().splitlines()]
    assert {**reject, "reason": "", "raw": ""} == {
        "file": str(file),
        "line": 3,
        "code": code,
        "reason": "",
        "raw": "",
    }
    assert reject["reason"] in first
    assert reject["raw"] == line.decode(errors="replace")[: 64 * 1024]


def test_all_bad_lines_are_counted_and_the_first_twenty_shown(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(text() + b"\n" + (b"[1]\n" + text(split="x") + b"\n") * 15)
    with pytest.raises(UserError) as caught:
        read_pairs(str(file), DataConfig(path=str(file)))
    lines = str(caught.value).split("\n")
    assert len(lines) == 22
    assert lines[19].startswith(f"{file}:21: ")
    assert lines[20] == "and 10 more (bad-split 5, not-an-object 5)"
    assert lines[21].startswith("30 bad lines; fix them, or set data.on_error=skip")


def test_a_good_line_becomes_a_pair_with_all_it_says(tmp_path):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    system = {"role": "system", "content": ""}
    openai = {**CALLING, "refusal": None, "annotations": [], "audio": None}
    file = tmp_path / "pairs.jsonl"
    line = text(
        messages=[system, USER, openai, ANSWER, GOOD],
        tools=[tool], tool_choice="auto", temperature=0.2, metadata={"k": 1}, split="TEST",
    )  # fmt: skip
    file.write_bytes(line + b"\n" + text(temperature=1))
    result = read_pairs(str(file), DataConfig(path=str(file)))
    found = result.pairs[0]
    assert found.prompt[:2] == (system, USER)
    assert found.prompt[2] == {
        "role": "assistant",
        "tool_calls": [{**CALL, "function": {"name": "look", "arguments": {}}}],
    }
    assert found.prompt[3] == ANSWER
    assert (found.chosen, found.rejected) == ((GOOD,), (BAD,))
    assert (found.split, found.tools, found.metadata) == ("TEST", (tool,), {"k": 1})
    assert found.source == f"{file}:1"
    assert result.report.ignored_fields == {"temperature": 2, "tool_choice": 1}
    assert result.report.pairs == {"TRAIN": 1, "TEST": 1}
    assert result.report.lines == 2


def test_arguments_that_are_no_object_stay_text(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(calls(function={"name": "look", "arguments": "{'a'"}) + b"\n")
    [found] = read_pairs(str(file), DataConfig(path=str(file))).pairs
    assert found.prompt[1]["tool_calls"][0]["function"]["arguments"] == "{'a'"


def test_bom_crlf_blank_lines_and_line_separators_in_strings_are_read(tmp_path):
    odd = "a\u2028b\u2029c\u0085d\x0be\x1cf"
    line = text(messages=[{"role": "user", "content": odd}, GOOD])
    line = line.replace(b"\\u2028", "\u2028".encode())
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n \t\n" + text())
    result = read_pairs(str(file), DataConfig(path=str(file)))
    assert result.pairs[0].prompt[0]["content"] == odd
    assert [p.source for p in result.pairs] == [f"{file}:1", f"{file}:4"]
    assert (result.report.lines, result.report.blank) == (4, 2)
    assert "blank lines: 2" in result.report.summary()


def test_deep_but_allowed_and_brackets_in_strings(tmp_path):
    value = "x"
    for _ in range(62):
        value = [value]
    deepest = text(metadata={"a": value})
    assert len(parse_line(deepest)) == 4
    with pytest.raises(BadPair, match="too-deep"):
        parse_line(text(metadata={"a": [value]}))
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(deepest + b"\n" + text(metadata={"a": '[\\"' * 500}))
    assert len(read_pairs(str(file), DataConfig(path=str(file))).pairs) == 2


def test_an_endless_line_costs_no_memory(tmp_path):
    file = tmp_path / "pairs.jsonl"
    with open(file, "wb") as stream:
        stream.truncate(2**28)
        stream.seek(2**28)
        stream.write(b"\n" + text())
    tracemalloc.start()
    result = read_pairs(str(file), DataConfig(path=str(file), on_error="skip"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.report.rejected == {"line-too-long": 1}
    assert result.pairs[0].source == f"{file}:2"
    assert peak < 3 * 2**24 + 2**20


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n \r\n", "only 3 blank lines"),
        (text(split="TEST") + b"\n", "none of its 1 pairs are in the TRAIN split"),
        (b"\x1f\x8b\x08rest", "cannot be read to its end"),
        (b"PAR1rest", "cannot be read to its end"),
        (b"PK\x03\x04rest", "is a zip archive"),
        ("{}".encode("utf-16"), "UTF-16"),
    ],
)
def test_files_that_hold_no_training_pairs(tmp_path, content, said):
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=str(file)) as caught:
        read_pairs(str(file), DataConfig(path=str(file)))
    assert said in str(caught.value)


def test_paths_that_are_no_file(tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes(text())
    (tmp_path / "folder").mkdir()
    for path, said in [
        (tmp_path / "folder", "is a folder without data files"),
        (tmp_path / "*.json", "no file is named like this"),
        (tmp_path / "pair.jsonl", "no such file; did you mean 'pairs.jsonl'?"),
        (tmp_path / "nowhere" / "pairs.jsonl", "no such file; set data.path"),
    ]:
        with pytest.raises(UserError) as caught:
            read_pairs(str(path), DataConfig(path=str(path)))
        assert str(caught.value).startswith(f"{path}: ")
        assert said in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "tool_calls", "function", "name"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
_LINES = st.one_of(
    st.binary(max_size=40),
    _JSON.map(lambda value: json.dumps(value).encode()),
    st.tuples(
        st.sampled_from(["messages", "rejected_message", "split", "tools", "metadata"]), _JSON
    ).map(lambda change: text(**dict([change]))),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_LINES, max_size=4))
def test_any_bytes_are_read_or_refused_by_line(tmp_path_factory, lines):
    file = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    file.write_bytes(b"\n".join([text(), *lines]))
    count = b"\n".join([text(), *lines]).count(b"\n") + 1
    with open(file, "rb") as stream:
        numbers = [
            record.line if isinstance(record, Record | BadLine) else None
            for record in read_records(stream, str(file))
        ]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) in (count, count - 1)
    result = read_pairs(str(file), DataConfig(path=str(file), on_error="skip"))
    report = result.report
    assert len(result.pairs) + len(result.bad_lines) + report.blank == report.lines
    for bad in result.bad_lines:
        str(bad).encode()
