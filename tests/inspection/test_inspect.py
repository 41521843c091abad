"""Each kind of problem is found where it was put, and nothing in clean data."""

import json
import random
import re
import subprocess
import sys
from typing import Any

import pytest

from jaxdpo.data.config import DataConfig
from jaxdpo.data.packing.plan import BatchConfig
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.writing import write_pairs
from jaxdpo.errors import UserError
from jaxdpo.inspect import main
from jaxdpo.inspection.cleaning import clean
from jaxdpo.inspection.findings import find
from jaxdpo.inspection.languages import language
from jaxdpo.inspection.shortcuts import find_shortcuts
from jaxdpo.inspection.survey import almost_equal, survey_pairs
from jaxdpo.inspection.tokens import tokenize

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("ra", "ne", "to", "li")]


def sentence(rng, length):
    return " ".join(rng.choice(WORDS) for _ in range(length)) + "."


def clean_records(count=300) -> list[dict[str, Any]]:
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
    return {f.code: f for f in find(survey_pairs(pairs), find_shortcuts(pairs))}


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
    write_pairs(left, tmp_path / "clean.jsonl")
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
        {finding.code for finding in find(survey_pairs(pairs), ())}
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


def spoken(*texts):
    user, answers = texts[0::2], texts[1::2]
    said = [{"role": "user", "content": text} for text in user]
    for i, text in enumerate(answers):
        said.insert(2 * i + 1, {"role": "assistant", "content": text})
    return said


def test_each_kind_of_finding_in_tokens_is_found_where_it_stands(make_tokenizer, tmp_path):
    """By their place; the template refuses a system message."""
    chat = Chat(make_tokenizer("bytes", "gemma"))
    records = clean_records(40)
    clean = read(write(tmp_path / "clean.jsonl", records))
    batch = BatchConfig(size=4)
    assert tokenize(clean, chat, 2048, batch, 0).findings == ()
    assert not tokenize(clean, chat, 2048, batch, 0).forecast[0].endswith("to fit 2048")
    long = "word " * 900
    records[3] |= {"prompt": [{"role": "system", "content": "Hm"}, *spoken("q")]}
    records[5] |= {"prompt": spoken(f"{long}?", "Yes.", "And now?")}
    records[6] |= {"prompt": long}
    records[8] |= {"chosen": long * 3}
    records[9] |= {"prompt": "What is <end_of_turn>?"}
    pairs = read(write(tmp_path / "a.jsonl", records))
    found = tokenize(pairs, chat, 2048, batch, (6, 7))
    places = {f.code: [int(re.findall(r":(\d+)", where)[-1]) for where in f.where]
              for f in found.findings}  # fmt: skip
    assert places == {
        "refused": [4],
        "cut": [6],
        "cut-within": [7],
        "dropped": [9],
        "control-text": [10],
    }
    assert len(found.lengths) == 38
    # The two pairs that were asked for: all of the prompt is shown, what was cut marked.
    assert [seen.source.rpartition(":")[2] for seen in found.shown] == ["6", "7"]
    lost = 0
    for seen, record in zip(found.shown, (records[5], records[6]), strict=True):
        text = {kind: "".join(t for k, t in seen.spans if k == kind) for kind in ("prompt", "cut")}
        whole = "".join(t for k, t in seen.spans if k in ("prompt", "cut"))
        said = record["prompt"] if isinstance(record["prompt"], str) else long + "?"
        assert said.strip() in whole
        assert 100 < len(text["cut"]) <= len(whole) - len(text["prompt"])
        lost += seen.cut
    assert re.match(rf"{lost:,} of [\d,]+ prompt tokens are cut to fit 2048", found.forecast[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is the capital of Tasmania, and how far is it from here?", "English"),
        ("Wie heißt die Hauptstadt von Tasmanien, und ist sie groß?", "German"),
        ("Quelle est la capitale de la Tasmanie, et est-ce une grande ville?", "French"),
        ("¿Cuál es la capital de Tasmania y por qué no es una ciudad grande?", "Spanish"),
        ("Qual é a capital da Tasmânia e por que não é uma cidade grande?", "Portuguese"),
        ("Qual è la capitale della Tasmania e come si arriva con il treno?", "Italian"),
        ("Wat is de hoofdstad van het eiland en hoe ver is het?", "Dutch"),
        ("日本の首都はどこですか。", "Japanese"),
        ("日本的首都是哪里？", "Chinese"),
        ("일본의 수도는 어디입니까?", "Korean"),
        ("Где находится столица?", "Russian"),
        ("Bogolo marata kiseno", "Latin script"),
        ("2 + 3 = ?", "no words"),
    ],
)
def test_languages_are_told_apart(text, expected):
    assert language(text) == expected


def test_mistakes_on_the_command_line():
    for arguments, said in [
        (["a", "modle=x"], "did you mean 'model'"),
        (["a", "b"], "'b': a word too many"),
        (["a", "data.max_len=3"], "data.max_len"),
        (["a", "remedies=[dedupe]"], "set write="),
        (["a", "write=x", "remedies=[burn]"], "remedies.0"),
    ]:
        with pytest.raises(UserError, match=re.escape(said)):
            main(arguments)


def test_looking_at_data_loads_no_jax(tmp_path):
    source = write(tmp_path / "a.jsonl", clean_records(20))
    code = (
        "import sys; from jaxdpo.inspect import main; "
        f"main([{source!r}, 'report={tmp_path / 'r.html'}']); "
        "assert 'jax' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
