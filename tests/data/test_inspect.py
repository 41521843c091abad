"""Each kind of problem is found where it was put, and nothing in clean data."""

import json
import random
import re
import subprocess
import sys

import pytest

from jaxdpo.data.config import DataConfig
from jaxdpo.data.reader import read_pairs
from jaxdpo.errors import UserError
from jaxdpo.inspect import main, parse
from jaxdpo.inspection import cleaning
from jaxdpo.inspection.cleaning import clean
from jaxdpo.inspection.findings import almost_equal, find
from jaxdpo.inspection.shortcuts import find_shortcuts

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("ra", "ne", "to", "li")]


def sentence(rng, length):
    return " ".join(rng.choice(WORDS) for _ in range(length)) + "."


def clean_records(count=300):
    """Answers of random words: no rule can tell which is chosen."""
    rng = random.Random(1)
    return [
        {
            "prompt": f"Question {i}: {sentence(rng, 8)}",
            "chosen": sentence(rng, rng.randrange(20, 40)),
            "rejected": sentence(rng, rng.randrange(20, 40)),
        }
        for i in range(count)
    ]


def write(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(file)


def read(path):
    return read_pairs(path, DataConfig(path=path)).pairs


def codes(tmp_path, records):
    pairs = read(write(tmp_path / "a.jsonl", records))
    return {f.code: f for f in find(pairs, find_shortcuts(pairs))}


def test_nothing_is_found_in_clean_data(tmp_path):
    assert codes(tmp_path, clean_records()) == {}


def thumbs(count=300):
    """Labelled answers of random words, two thirds of them good."""
    rng = random.Random(2)
    return [
        {
            "prompt": f"Question {i}: {sentence(rng, 8)}",
            "completion": sentence(rng, rng.randrange(20, 40)),
            "label": i % 3 > 0,
        }
        for i in range(count)
    ]


def test_labelled_answers_are_looked_at_alike(tmp_path):
    records = thumbs()
    assert codes(tmp_path, records) == {}
    records += [records[3], {**records[4], "label": not records[4]["label"]}]
    found = codes(tmp_path, records)
    assert {code: line_of(finding) for code, finding in found.items()} == {
        "duplicate": [301],
        "opposite": [5, 302],
    }
    pairs = read(str(tmp_path / "a.jsonl"))
    left, changes = clean(pairs, ["dedupe", "conflicts"])
    assert (len(left), len(changes)) == (299, 3)
    cleaning.write(left, tmp_path / "clean.jsonl")
    again = read(str(tmp_path / "clean.jsonl"))
    assert [(p.prompt, p.chosen, p.label) for p in again] == [
        (p.prompt, p.chosen, p.label) for p in left
    ]
    with pytest.raises(UserError, match="judged one by one; leave it out"):
        clean(pairs, ["balance"])
    sure = [{**r, "completion": "Sure, " * r["label"] + r["completion"]} for r in records]
    assert "'sure' +" in codes(tmp_path, sure)["shortcut"].title


def line_of(finding):
    return [int(where.rpartition(":")[2]) for where in finding.where]


def test_each_kind_is_found_where_it_stands(tmp_path):
    records = clean_records()
    turned = {**records[5], "chosen": records[5]["rejected"], "rejected": records[5]["chosen"]}
    near = {**records[6], "chosen": records[6]["chosen"].replace(".", " indeed.")}
    cased = {**records[7], "rejected": records[7]["chosen"].upper()}
    broken = {**records[8], "chosen": records[8]["chosen"][:-1]}
    low = {**records[9], "chosen_score": 1, "rejected_score": 2}
    for i, record in ((7, cased), (8, broken), (9, low)):
        records[i] = record
    records += [records[3], turned, near]
    records[10] |= {"split": "TRAIN"}
    records.append({**records[10], "split": "TEST", "chosen": "Something else entirely."})
    found = codes(tmp_path, records)
    assert {code: line_of(finding) for code, finding in found.items()} == {
        "duplicate": [301],
        "opposite": [6, 302],
        "near-duplicate": [303],
        "leak": [304],
        "almost-equal": [8],
        "no-end": [9],
        "score": [10],
    }
    assert [finding.count for finding in found.values()] == [1, 2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("length", lambda r: {**r, "chosen": r["chosen"] + " " + r["chosen"]}),
        ("first word", lambda r: {**r, "chosen": "Certainly, " + r["chosen"]}),
        ("bag of words", lambda r: {**r, "rejected": r["rejected"][:-1] + " sorry."}),
    ],
)
def test_a_rule_that_tells_chosen_from_rejected_is_found(tmp_path, rule, change):
    records = clean_records()
    changed = [change(r) if i % 10 else r for i, r in enumerate(records)]
    pairs = read(write(tmp_path / "a.jsonl", changed))
    [shortcut] = [each for each in find_shortcuts(pairs) if each.name == rule]
    # Nine tenths have the mark; on the rest a rule is as good as a coin.
    assert 0.88 < shortcut.accuracy <= 1.0
    assert shortcut.notable


def test_answers_that_differ_by_almost_nothing():
    long = " ".join(WORDS[:30])
    assert almost_equal("Yes, it is.", "yes it is!")
    assert almost_equal(long, long.replace(WORDS[9], "x"))
    assert almost_equal(long, long + " x")
    assert not almost_equal("4", "5")
    assert not almost_equal(long, long.replace(WORDS[9], "x").replace(WORDS[20], "y"))


def test_remedies_do_what_they_say_and_say_what_they_do(tmp_path):
    records = clean_records(40)
    for record in records[:30]:
        record["chosen"] += " " + record["rejected"]
    turned = {**records[5], "chosen": records[5]["rejected"], "rejected": records[5]["chosen"]}
    records[10] |= {"split": "TRAIN"}
    leak = {**records[10], "split": "TEST", "chosen": "Something else."}
    source = write(tmp_path / "a.jsonl", [*records, records[3], turned, leak])
    before = read(source)
    for remedies, gone, moved in [
        ((), 0, 0), (("dedupe",), 1, 0), (("conflicts",), 2, 0), (("leaks",), 0, 1)
    ]:  # fmt: skip
        left, changes = clean(before, remedies)
        assert (len(before) - len(left), len(changes)) == (gone, gone + moved)
    target = tmp_path / "clean.jsonl"
    main([source, f"report={tmp_path / 'r.html'}", f"write={target}",
          "remedies=[dedupe,conflicts,leaks,balance]"])  # fmt: skip
    pairs = read(str(target))
    train = [pair for pair in pairs if pair.split == "TRAIN"]
    surplus = [len(p.chosen[0]["content"]) - len(p.rejected[0]["content"]) for p in train]
    assert sum(each > 0 for each in surplus) == sum(each < 0 for each in surplus) > 0
    assert {"duplicate", "opposite", "leak"}.isdisjoint(
        {finding.code for finding in find(pairs, ())}
    )


def test_what_is_written_reads_back_as_the_same_pairs(tmp_path):
    call = {"type": "function", "function": {"name": "look", "arguments": {"a": 1}}}
    records = [
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "content": "4"},
                {"role": "assistant", "content": "4"},
            ],
            "rejected": "no", "tools": [{"type": "function", "function": {"name": "look"}}],
            "metadata": {"a": [1]}, "chosen_score": 2, "rejected_score": 1.5, "split": "TRAIN",
            "chat_template_kwargs": {"think": True}, "mine": 7,
        }
    ]  # fmt: skip
    source, target = write(tmp_path / "a.jsonl", records), tmp_path / "b.jsonl"
    main([source, f"report={tmp_path / 'r.html'}", f"write={target}"])
    [before], [after] = read(source), read(str(target))
    assert {**vars(after), "source": ""} == {**vars(before), "source": ""}


def test_the_report_shows_tokens_and_needs_nothing_else(make_tokenizer, tmp_path, capsys):
    make_tokenizer("bytes", "chatml").save_pretrained(tmp_path / "model")
    records = clean_records(12)
    records[0]["prompt"] = "<script>alert('q')</script> <|im_end|> é"
    records[1]["prompt"] *= 60
    source = write(tmp_path / "a.jsonl", [*records, {"prompt": 1}])
    report = tmp_path / "r.html"
    main([source, f"model={tmp_path / 'model'}", f"report={report}", "batch.size=4",
          "data.max_length=512"])  # fmt: skip
    html = report.read_text()
    assert not re.search(r"<script|src=|href=|https?://|@import|url\(", html)
    assert "&lt;script&gt;" in re.sub(r"</span><span class=prompt>", "", html)
    assert all(kind in html for kind in ("class=prompt", "class=scored", "class=end", "<svg"))
    said = capsys.readouterr().out
    for part in ("bad lines skipped: 1 (missing-key 1)", "steps of 4 pairs", "[cut-within] 1 "):
        assert part in said, said


def test_mistakes_on_the_command_line():
    for arguments, said in [
        (["a", "modle=x"], "did you mean 'model'"),
        (["a", "data=x"], "write field=value"),
        (["a", "data.max_len=3"], "data.max_len"),
        (["a", "remedies=[dedupe]"], "set write="),
        (["a", "write=x", "remedies=[burn]"], "remedies.0"),
    ]:
        with pytest.raises(UserError, match=re.escape(said)):
            parse(arguments)


def test_looking_at_data_loads_no_jax(tmp_path):
    source = write(tmp_path / "a.jsonl", clean_records(20))
    code = (
        "import sys; from jaxdpo.inspect import main; "
        f"main([{source!r}, 'report={tmp_path / 'r.html'}']); "
        "assert 'jax' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
