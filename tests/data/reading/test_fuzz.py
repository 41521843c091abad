"""Generated lines, good and bad: each is read as it was made, or refused by its line and code.

The oracle knows nothing of the reader: a line is made together with what is to become of it. Bytes
changed at random are judged by another JSON parser, pydantic's. `JAXDPO_TEST_FUZZ=1000000` makes as
many lines.
"""

import json
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from pydantic_core import from_json

from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.reader import read_pairs

LINES = int(os.environ.get("JAXDPO_TEST_FUZZ", 6000))
PER_FILE = 1000
JSON_CODES = {
    *("invalid-utf8", "nul", "surrogate", "bad-json", "cut-off", "two-objects", "extra-data"),
    *("not-finite", "too-deep", "not-an-object"),
}
PIECES = [
    *("Hobart", " ", "  ", "\n", "\t", '"', "\\", "{", "}", "[", "]", ",", ":", "é", "東京", "😊"),
    *("\u2028", "\u0085", "\x1f", "\x7f", "<|im_end|>", "\n\nHuman:", "null", "\\u0000", "\\n"),
    *("a", "b", "0", "\ufeff", "\u200b", "e\u0301", "\U0010ffff"),
]
Line = dict[str, Any]


class Maker:
    """Makes one line at a time from a seed."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.count = 0

    def text(self) -> str:
        self.count += 1
        words = self.random.choices(PIECES, k=self.random.randrange(6))
        return f"Qq{self.count}" + "".join(words)

    def value(self, depth: int = 3) -> Any:
        kinds = [None, True, False, 0, -3, 2.5, 1e300, self.text(), [], {}]
        if depth and self.random.random() < 0.3:
            items = [self.value(depth - 1) for _ in range(self.random.randrange(3))]
            return items if self.random.random() < 0.5 else {self.text(): item for item in items}
        return self.random.choice(kinds)

    def call(self) -> dict[str, Any]:
        function = {"name": "look", "arguments": {"place": self.text()}}
        return {"id": f"c{self.count}", "type": "function", "function": function}

    def prompt(self) -> list[Line]:
        said: list[Line] = []
        if self.random.random() < 0.3:
            said.append({"role": "system", "content": self.text()})
        for _ in range(self.random.randrange(3)):
            said.append({"role": "user", "content": self.text()})
            if self.random.random() < 0.3:
                call = self.call()
                said.append({"role": "assistant", "tool_calls": [call]})
                said.append({"role": "tool", "content": self.text(), "tool_call_id": call["id"]})
            said.append({"role": "assistant", "content": self.text()})
        return [*said, {"role": "user", "content": self.text()}]

    def good(self) -> Line:
        answers = [{"role": "assistant", "content": self.text()} for _ in range(2)]
        line = {"messages": [*self.prompt(), answers[0]], "rejected_message": answers[1]}
        line["split"] = self.random.choice(["TRAIN", "TEST"])
        line["metadata"] = {self.text(): self.value() for _ in range(self.random.randrange(3))}
        if self.random.random() < 0.2:
            name = {"name": "look", "description": self.text()}
            line["tools"] = [{"type": "function", "function": name}]
        return line

    def written(self, line: Line) -> bytes:
        keys = list(line)
        self.random.shuffle(keys)
        text = json.dumps(
            {key: line[key] for key in keys},
            ensure_ascii=self.random.random() < 0.3,
            separators=self.random.choice([(",", ":"), (", ", ": "), (" ,\t", " : ")]),
        )
        space = self.random.choice(["", " ", "\t ", "\r"])
        return (self.random.choice(["", " "]) + text + space).encode()

    def bad(self) -> tuple[str, bytes]:
        """A line with one fault, and the fault's code."""
        if self.random.random() < 0.4:
            code, spoil = self.random.choice(BYTES)
            return code, spoil(self, self.written(self.good()).strip())
        code, spoil = self.random.choice(FAULTS)
        line = self.good()
        spoil(self, line)
        return code, self.written(line)


def insert(raw: bytes, at: int, what: bytes) -> bytes:
    return raw[:at] + what + raw[at:]


def anywhere(what: bytes) -> Callable[[Maker, bytes], bytes]:
    return lambda make, raw: insert(raw, make.random.randrange(len(raw) + 1), what)


def in_text(what: bytes) -> Callable[[Maker, bytes], bytes]:
    return lambda make, raw: insert(raw, raw.index(b"Qq") + 1, what)


def first(what: bytes) -> Callable[[Maker, bytes], bytes]:
    return lambda make, raw: insert(raw, raw.index(b"{") + 1, what)


BYTES: list[tuple[str, Callable[[Maker, bytes], bytes]]] = [
    ("invalid-utf8", anywhere(b"\xff")),
    ("invalid-utf8", in_text(b"\xc3")),
    ("invalid-utf8", in_text(b"\xed\xa0\x80")),
    ("nul", in_text(b"\0")),
    ("nul", first(b" \0 ")),
    ("nul", in_text(b"\\u0000")),
    ("surrogate", in_text(b"\\ud83d")),
    ("surrogate", in_text(b"\\uDE00x")),
    ("bad-json", in_text(b"\x01")),
    ("bad-json", in_text(b"\\x")),
    ("bad-json", first(b",")),
    ("bad-json", first(b"'a': 1, ")),
    ("bad-json", first(b'"x" 1, ')),
    ("bad-json", first(b'"x": True, ')),
    ("bad-json", first(b'"x": 01, ')),
    ("bad-json", lambda _, raw: raw[:-1] + b",}"),
    ("bad-json", lambda _, raw: b"\xef\xbb\xbf" + raw),
    ("cut-off", lambda make, raw: raw[: raw.rindex(b"Qq") + make.random.randrange(3)]),
    ("cut-off", lambda _, raw: raw[:-1]),
    ("two-objects", lambda make, raw: raw + b" " + make.written(make.good())),
    ("extra-data", lambda make, raw: raw + make.random.choice([b",", b" ]", b"}", b"1", b'"x"'])),
    ("duplicate-key", first(b'"split": "TRAIN", ')),
    ("duplicate-key", first(b'"x": {"a": 1, "b": 2, "a": 1}, ')),
    ("not-finite", first(b'"x": NaN, ')),
    ("not-finite", first(b'"x": [-Infinity], ')),
    ("not-finite", first(b'"x": -1e999, ')),
    ("not-finite", first(b'"x": ' + b"7" * 1500 + b", ")),
    ("too-deep", first(b'"x": ' + b"[" * 64 + b"]" * 64 + b", ")),
    ("too-deep", lambda make, _: b'{"a":' * make.random.randrange(65, 5000)),
    (
        "not-an-object",
        lambda make, raw: make.random.choice([b"1", b'"a"', b"null", b"[]", b"[" + raw + b"]"]),
    ),
]


def change(path: str, value: Any) -> Callable[[Maker, Line], None]:
    """Puts a value at a path such as `messages.-1.role`; `...` takes out what stands there."""

    def spoil(make: Maker, line: Line) -> None:
        *way, last = (int(key) if key.lstrip("-").isdecimal() else key for key in path.split("."))
        target: Any = line
        for key in way:
            target = target[key]
        if value is ...:
            del target[last]
        else:
            target[last] = value

    return spoil


def calling(calls: Any, *answers: Line) -> Callable[[Maker, Line], None]:
    asked = {"role": "user", "content": "q"}
    said = [asked, {"role": "assistant", "content": None, "tool_calls": calls}, *answers]

    def spoil(make: Maker, line: Line) -> None:
        line["messages"] = [*said, line["messages"][-1]]

    return spoil


def same_answer(make: Maker, line: Line) -> None:
    line["rejected_message"] = dict(line["messages"][-1])


def late_system(make: Maker, line: Line) -> None:
    line["messages"].insert(-1, {"role": "system", "content": make.text()})


def no_user(make: Maker, line: Line) -> None:
    line["messages"] = [{"role": "assistant", "content": make.text()}, line["messages"][-1]]


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ANSWER = {"role": "tool", "content": "4", "tool_call_id": "c"}
FAULTS: list[tuple[str, Callable[[Maker, Line], None]]] = [
    ("missing-key", change("messages", ...)),
    ("missing-key", change("messages", None)),
    ("missing-key", change("rejected_message", ...)),
    ("unknown-key", change("rejected_mesage", 1)),
    ("unknown-key", change("", {})),
    ("messages-type", change("messages", "text")),
    ("messages-type", change("messages", {"role": "user"})),
    ("messages-short", change("messages", [])),
    ("message-type", change("messages.0", 3)),
    ("message-type", change("rejected_message", ["a"])),
    ("role-missing", change("messages.-1.role", ...)),
    ("role-missing", change("rejected_message.role", None)),
    ("unknown-role", change("messages.-2.role", "human")),
    ("unknown-role", change("messages.-1.role", {"role": "user"})),
    ("unknown-message-key", change("messages.-2.contents", "x")),
    ("unknown-message-key", change("messages.-2.tool_calls", [CALL])),
    ("message-field-type", change("messages.-2.name", 4)),
    ("content-missing", change("messages.-2.content", ...)),
    ("content-missing", change("messages.-1.content", None)),
    ("content-missing", change("rejected_message.content", [])),
    ("content-type", change("messages.-2.content", 4.5)),
    ("content-type", change("rejected_message.content", {"text": "x"})),
    ("content-parts", change("messages.-2.content", ["x"])),
    ("content-parts", change("messages.-2.content", [{"type": "text", "text": 1}])),
    ("content-not-text", change("messages.-2.content", [{"type": "image_url"}])),
    ("empty-completion", change("messages.-1.content", "")),
    ("empty-completion", change("rejected_message.content", " \n\t\u2003")),
    ("identical-completions", same_answer),
    ("last-not-assistant", change("messages.-1", {"role": "user", "content": "x"})),
    ("rejected-role", change("rejected_message.role", "user")),
    ("no-user", no_user),
    ("system-not-first", late_system),
    ("tool-without-call", lambda _, line: line["messages"].insert(-1, ANSWER)),
    ("tool-call-unanswered", calling([CALL])),
    ("tool-call-unanswered", calling([CALL, {**CALL, "id": "d"}], ANSWER)),
    ("tool-call-id", calling([CALL], {**ANSWER, "tool_call_id": "other"})),
    ("tool-calls-type", calling("f()", ANSWER)),
    ("tool-call-type", calling(["f"], ANSWER)),
    ("tool-call-name", calling([{**CALL, "function": {"name": ""}}], ANSWER)),
    ("tool-call-arguments", calling([{**CALL, "function": {"name": "f", "arguments": 1}}], ANSWER)),
    ("tool-call-id-type", calling([{**CALL, "id": 7}], ANSWER)),
    ("tools-type", change("tools", {"name": "f"})),
    ("tools-type", change("tools", "no JSON")),
    ("tools-twice", lambda _, line: line.update(tools=[], functions=[])),
    ("tool-type", change("tools", [{"type": "function", "function": {}}])),
    ("bad-split", change("split", "trian")),
    ("bad-split", change("split", 0)),
    ("metadata-type", change("metadata", ["x"])),
    ("score-type", lambda _, line: line.update(chosen_score=1, rejected_score="2")),
    ("score-type", lambda _, line: line.update(chosen_score=True, rejected_score=1)),
    ("template-kwargs", change("chat_template_kwargs", "x")),
    ("template-kwargs", change("chat_template_kwargs", {"messages": []})),
]


def expected_of(line: Line) -> tuple[Any, ...]:
    """Returns the meaning of a good line, by hand."""
    *prompt, chosen = line["messages"]
    tools = tuple(line.get("tools", ()))
    return (
        tuple(prompt),
        (chosen,),
        (line["rejected_message"],),
        line["split"],
        tools,
        line["metadata"],
    )


def refused(value: Any) -> bool:
    """Tells whether a JSON value holds a NUL, or a number out of range."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return any(map(refused, value))
    return "\0" in value if isinstance(value, str) else value in (float("inf"), -float("inf"))


def make_file(make: Maker, lines: int) -> tuple[bytes, dict[int, Any]]:
    """A file, and of each line that is not blank what it must become: a pair, or a code."""
    start = make.good() | {"split": "TRAIN"}
    raws, expected = [b"\xef\xbb\xbf" + make.written(start)], {1: expected_of(start)}
    for number in range(2, lines + 1):
        drawn = make.random.random()
        if drawn < 0.05:
            raws.append(make.random.choice([b"", b"  ", b"\t\r"]))
        elif drawn < 0.5:
            line = make.good()
            raws.append(make.written(line))
            expected[number] = expected_of(line)
        else:
            expected[number], raw = make.bad()
            raws.append(raw)
    return b"\n".join(raws) + make.random.choice([b"", b"\n"]), expected


@pytest.mark.parametrize("part", range(4))
def test_lines_are_read_as_they_were_made_or_refused_by_line_and_code(tmp_path, part):
    file = tmp_path / "pairs.jsonl"
    config = DataConfig(path=str(file), on_error="skip", format="messages")
    for index in range(max(LINES // 4 // PER_FILE, 1)):
        content, expected = make_file(Maker(1000 * index + part), PER_FILE)
        file.write_bytes(content)
        result = read_pairs(str(file), config)
        found: dict[int, Any] = {bad.line: bad.code for bad in result.bad_lines}
        for p in result.pairs:
            line = int(p.source.removeprefix(f"{file}:"))
            found[line] = (p.prompt, p.chosen, p.rejected, p.split, p.tools, p.metadata)
        wrong = {n: (expected.get(n), found.get(n)) for n in expected | found
                 if expected.get(n) != found.get(n)}  # fmt: skip
        assert not wrong, (index, {n: content.split(b"\n")[n - 1][:300] for n in wrong}, wrong)


def test_bytes_changed_at_random_are_judged_as_by_another_parser(tmp_path):
    make = Maker(7)
    file = tmp_path / "pairs.jsonl"
    config = DataConfig(path=str(file), on_error="skip", format="messages")
    for _ in range(max(LINES // 5 // PER_FILE, 1)):
        raws = [make.written(make.good() | {"split": "TRAIN"}) for _ in range(PER_FILE)]
        for i in range(1, PER_FILE):
            at = make.random.randrange(len(raws[i]))
            byte = bytes([make.random.choice([*range(1, 10), *range(11, 256)])])
            taken = make.random.choice([0, 1, 1, 1, 9])
            raws[i] = raws[i][:at] + byte + raws[i][at + taken :]
        file.write_bytes(b"\n".join(raws))
        codes = {bad.line: bad.code for bad in read_pairs(str(file), config).bad_lines}
        for number, raw in enumerate(raws, start=1):
            try:
                value = from_json(raw, allow_inf_nan=False)
                parsed = isinstance(value, dict) and not refused(value)
            except ValueError:
                parsed = False
            assert (codes.get(number) not in JSON_CODES) == parsed, (codes.get(number), raw)
