"""Inspection of what no memory holds: all places, one pass, near-duplicates, examples alone."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdpo.data.config import DataConfig
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.errors import UserError
from jaxdpo.inspection import survey
from jaxdpo.inspection.cleaning import clean
from jaxdpo.inspection.config import InspectConfig
from jaxdpo.inspection.findings import find
from jaxdpo.inspection.languages import language
from jaxdpo.inspection.places import PlacesWriter
from jaxdpo.inspection.run import inspect_data
from jaxdpo.inspection.survey import almost_equal, survey_pairs
from jaxdpo.pages.histograms import draw_histograms, histogram

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("ra", "ne", "to", "li")]


def sentence(rng: random.Random, length: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(length)) + "."


def records(count: int) -> list[dict[str, Any]]:
    rng = random.Random(5)
    return [
        {
            "prompt": f"{i} {sentence(rng, 8)}",
            "chosen": sentence(rng, 30),
            "rejected": sentence(rng, 30),
        }
        for i in range(count)
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def inspect(path: str, folder: Path, **fields: Any) -> str:
    report = folder / "report.html"
    data = {"path": path, **fields.pop("data", {})}
    inspect_data(InspectConfig.model_validate({"data": data, "report": str(report), **fields}))
    return report.read_text(encoding="utf-8")


def test_every_place_is_in_the_report_and_the_first_in_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lines = records(40)
    source = write(tmp_path / "a.jsonl", lines + lines[:20])
    html = inspect(source, tmp_path)
    for number in range(41, 61):
        assert re.search(rf"a\.jsonl:{number}\b", html)
    assert "all 20" in html
    [said] = [line for line in capsys.readouterr().out.splitlines() if "[duplicate]" in line]
    assert re.findall(r"a\.jsonl:(\d+)", said) == ["41", "42", "43", "44", "45"]
    assert "and 15 more" in said


def test_near_duplicates_are_dropped_but_for_the_first(tmp_path: Path):
    lines = records(30)
    near = [{**line, "chosen": line["chosen"][:-1] + " indeed."} for line in lines[:10]]
    source = write(tmp_path / "a.jsonl", lines + near)
    target = tmp_path / "clean.jsonl"
    inspect(source, tmp_path, write=str(target), remedies=["near-duplicates"])
    pairs = read_pairs(source, DataConfig(path=source)).pairs
    assert survey_pairs(pairs).near.tolist() == list(range(30, 40))
    left = read_pairs(str(target), DataConfig(path=str(target))).pairs
    assert [pair.chosen for pair in left] == [pair.chosen for pair in pairs[:30]]
    assert [pair.split for pair in left] == [pair.split for pair in pairs[:30]]


def test_supervised_examples_are_inspected_as_pairs_are(tmp_path: Path):
    lines = [
        {"messages": [{"role": "user", "content": one["prompt"]},
                      {"role": "assistant", "content": one["chosen"]}]}
        for one in records(30)
    ]  # fmt: skip
    broken = json.loads(json.dumps(lines[3]))
    broken["messages"][0]["content"] += " Now?"
    broken["messages"][1]["content"] = sentence(random.Random(7), 30)[:-1]
    source = write(tmp_path / "a.jsonl", [*lines, lines[4], broken])
    target = tmp_path / "clean.jsonl"
    html = inspect(source, tmp_path, write=str(target), remedies=["dedupe"])
    kinds = re.findall(r"<tr><td>([a-z-]+)</td><td>1</td>", html)
    assert kinds == ["duplicate", "no-end"]
    assert "There are no two answers to compare" in html
    written = [json.loads(line) for line in target.read_text().splitlines()]
    assert [one["messages"] for one in written] == [one["messages"] for one in [*lines, broken]]
    with pytest.raises(UserError, match="examples are single; leave it out"):
        inspect(source, tmp_path, write=str(target), remedies=["balance"])
    with pytest.raises(UserError, match=r"leave data\.turns out"):
        inspect(source, tmp_path, write=str(target), data={"turns": "all"})


def test_text_that_shows_nothing_and_weights_that_weigh_nothing(tmp_path: Path):
    lines = [{**line, "metadata": {"w": 0}} for line in records(30)]
    lines[3]["rejected"] = "\u200b\u2060"
    source = write(tmp_path / "a.jsonl", lines)
    pairs = read_pairs(source, DataConfig(path=source)).pairs
    surveyor = survey.Surveyor("w")
    for pair in pairs:
        surveyor.add(pair)
    found = {finding.code: finding for finding in find(surveyor.finish(), ())}
    assert list(found) == ["invisible", "zero-weights"]
    assert list(found["invisible"].where) == [f"{source}:4"]
    assert found["zero-weights"].count == 30


def test_a_sample_does_not_depend_on_the_order_of_the_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(survey, "SAMPLE", 10)
    lines = records(60)
    chosen = []
    for name, order in (("a", lines), ("b", lines[::-1])):
        source = write(tmp_path / f"{name}.jsonl", order)
        sample = survey_pairs(read_pairs(source, DataConfig(path=source)).pairs).sample
        chosen.append({pair.prompt[0]["content"] for pair in sample})
    assert len(chosen[0]) == 10
    assert chosen[0] == chosen[1]


def test_repeats_and_turned_pairs_are_those_that_comparing_all_finds(tmp_path: Path):
    rng = random.Random(3)
    lines = [
        {
            "prompt": f"Which {rng.randrange(6)}?",
            "chosen": (answers := rng.sample(["one", "two", "three"], 2))[0],
            "rejected": answers[1],
            "split": rng.choice(["TRAIN", "TEST"]),
        }
        for _ in range(60)
    ]
    source = write(tmp_path / "a.jsonl", lines)
    pairs = read_pairs(source, DataConfig(path=source)).pairs
    keys = [(line["prompt"], line["chosen"], line["rejected"]) for line in lines]
    again = [i for i, key in enumerate(keys) if key in keys[:i]]
    turned = [i for i, (p, c, r) in enumerate(keys) if (p, r, c) in keys]
    train = {line["prompt"] for line in lines if line["split"] == "TRAIN"}
    leaked = [i for i, one in enumerate(lines) if one["split"] == "TEST" and one["prompt"] in train]
    found = {finding.code: finding for finding in find(survey_pairs(pairs), ())}
    for code, expected in (("duplicate", again), ("opposite", turned), ("leak", leaked)):
        assert list(found[code].where) == [f"{source}:{i + 1}" for i in expected]
    left, _ = clean(pairs, ["conflicts", "dedupe", "near-duplicates"])
    assert len(left) == len(set(keys) - {(p, r, c) for p, c, r in keys})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Jakie jest największe miasto w Polsce i ile ma mieszkańców?", "Polish"),
        ("Hur många invånare har Sveriges huvudstad?", "Swedish"),
        ("Mikä on Suomen pääkaupunki ja kuinka monta asukasta siellä on?", "Finnish"),
        ("Türkiye'nin başkenti neresidir ve nüfusu kaçtır?", "Turkish"),
        ("Thủ đô của Việt Nam là gì?", "Vietnamese"),
        ("ما هي عاصمة مصر وكم عدد سكانها؟", "Arabic"),
        ("מהי בירת ישראל?", "Hebrew"),
        ("Ποια είναι η πρωτεύουσα της Ελλάδας;", "Greek"),
        ("ประเทศไทยมีเมืองหลวงชื่ออะไร", "Thai"),
        ("Столицею України є місто Київ, чи не так?", "Ukrainian"),
        ("Jaké je hlavní město České republiky a kolik má obyvatel?", "Czech"),
        ("Apa ibu kota Indonesia dan berapa jumlah penduduknya?", "Indonesian"),
    ],
)
def test_more_languages(text: str, expected: str):
    assert language(text) == expected


def edit_distance(one: list[str], two: list[str]) -> int:
    """Computes the Levenshtein distance by the textbook recurrence."""
    above = list(range(len(two) + 1))
    for i, a in enumerate(one, start=1):
        row = [i]
        for j, b in enumerate(two, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b)))
        above = row
    return above[-1]


def test_almost_equal_is_at_most_one_edit_of_a_long_answer():
    rng = random.Random(0)
    seen = set()
    for _ in range(300):
        one = [rng.choice(WORDS) for _ in range(rng.randrange(20, 30))]
        two = list(one)
        for _ in range(rng.randrange(3)):
            place = rng.randrange(len(two))
            two[place : place + rng.randrange(2)] = rng.choices(WORDS[:5], k=rng.randrange(2))
        expected = edit_distance(one, two) <= 1
        assert almost_equal(" ".join(one), " ".join(two)) is expected
        seen.add(expected)
    assert seen == {True, False}


def test_histograms_share_their_bins_and_scales():
    values = np.array([0, 0, 3, 9, 10, 99], np.int32)
    assert histogram(values, 10, 10).tolist() == [4, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    columns = [("short", np.array([1, 2, 3])), ("long", np.repeat([5, 100, 299], [6, 2, 2]))]
    svg = draw_histograms([*columns, ("<b>", np.array([7]))], "tokens", "pairs")
    plots = re.split(r'font-size="12" text-anchor="start">', svg)
    assert [plot.split("<")[0] for plot in plots[1:]] == ["short", "long", "&lt;b&gt;"]
    bars = [re.findall(r'width="([\d.]+)" height="([\d.]+)" fill', plot) for plot in plots[1:]]
    assert [len(each) for each in bars] == [30, 30, 30]
    # The highest bar, of 6, fills the plot of the second; the three of the first are half of it.
    assert max(float(height) for _, height in bars[1]) == 110
    assert float(bars[0][0][1]) == 55
    assert "tokens (each bar: 10)" in svg
    assert ">pairs</text>" in svg
    # Both axes begin at 0, in all three.
    assert svg.count(">0</text>") == 6


def test_places_are_what_was_given():
    writer = PlacesWriter()
    given = ["a.jsonl:3", "b:c.jsonl:4", "org/name:config:split:7", "nowhere", "a.jsonl:9"]
    for each in given:
        writer.add(each)
    places = writer.finish()
    assert list(places) == given
    assert list(places.take([4, 0])) == ["a.jsonl:9", "a.jsonl:3"]
    assert list(places[1:3]) == given[1:3]


def test_a_name_in_the_data_is_no_command_of_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lines = [{**line, "\x1b]0;owned\x07[bold]": 1} for line in records(20)]
    source = write(tmp_path / "a.jsonl", lines)
    html = inspect(source, tmp_path)
    said = capsys.readouterr().out
    assert "\\x1b]0;owned\\x07[bold] 20" in said
    assert not {"\x1b", "\x07"} & set(said)
    assert "[bold]" in html
