"""The page of a run says what its files say, whoever wrote them; it costs no run its life."""

import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jaxdpo.config import load_config
from jaxdpo.errors import UserError
from jaxdpo.report import main
from jaxdpo.runs.fit import fit
from jaxdpo.runs.report.comparison import comparison_page
from jaxdpo.runs.report.files import read_run
from jaxdpo.runs.report.run_page import run_page, write_report
from jaxdpo.runs.report.sections import metrics_table
from jaxdpo.runs.report.sentences import asked, verdict
from jaxdpo.runs.report.sweep import recommended
from jaxdpo.storage.noted import write_noted
from tests.browser import look
from tests.folders import write_model, write_pairs
from tests.run_configs import settings

NASTY = '</script><img src=x onerror="alert(1)"> & <b>\x1b]0;owned\x07'
SHOWN = NASTY.replace("\x1b", "\\x1b").replace("\x07", "\\x07")


class Parsed(HTMLParser):
    """Tags, and the exact values of numbers."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run on pairs with markup and commands of a terminal in every text."""
    folder = tmp_path_factory.mktemp("report")
    write_model(folder / "model")
    lines = write_pairs(folder / "pairs.jsonl", 30, test=6).read_text().splitlines()
    pairs = [json.loads(line) for line in lines]
    for pair in pairs:
        for message in (*pair["messages"], pair["rejected_message"]):
            message["content"] = f"{NASTY} {message['content']}"
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    arguments = settings(folder, folder / "run")
    arguments += ["training.completions=2", "training.evaluate_every=1"]
    arguments += ["training.watch.max_new_tokens=4", "training.watch.prompts=2"]
    config = load_config(None, arguments)
    # A notebook that ends in `fit(…)` shows a line, and not every metric and answer.
    given = []
    result = fit(config, on_metrics=lambda *record: given.append(record))
    assert [{"step": s, "split": name, **metrics} for s, name, metrics in given] == result.history
    assert repr(result).count("\n") == 0 and len(repr(result)) < 300 and "3 steps" in repr(result)
    assert len(repr(result.policy)) < 300
    return folder / "run"


def test_every_number_of_the_metrics_is_the_files(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    summary = json.loads((run / "summary.json").read_text())["test"]
    table = metrics_table(read_run(run))
    assert table is not None
    html = (run / "report.html").read_text()
    names = {name for name in summary["after"] if not name.endswith(("_low", "_high"))}
    assert {str(name) for *_, name in table.rows} == names - {"step", "split"}
    for _, before, after, name in table.rows:
        for cell, record in ((before, summary["before"]), (after, summary["after"])):
            ends = [record[name + end] for end in ("_low", "_high") if name + end in record]
            values = [float(value) for value in re.findall(r'value="([^"]*)"', cell)]
            # A figure that there was not yet, as a correlation without rewards, is a dash.
            assert values == ([record[name], *ends] if name in record else [])
            assert str(cell) in html
    # The curves' words begin and end with the figures of metrics.jsonl.
    test = [record for record in records if record["split"] == "TEST"]
    begin, end = (f"{test[at]['loss']:.4g} at step {test[at]['step']}" for at in (0, -1))
    assert f"TEST from {begin} to {end}" in html


def test_texts_of_data_and_models_stay_text(run):
    html = (run / "report.html").read_text()
    parsed = Parsed(html)
    assert not [tag for tag, _ in parsed.tags if tag in ("img", "b", "iframe", "link", "form")]
    assert not [name for _, attributes in parsed.tags for name in attributes if name[:2] == "on"]
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", html)
    assert not re.search(r"https?://|@import|url\(|src=", html.replace("src=x", ""))
    assert unescape(html).count(SHOWN) >= 6 * 3


def test_the_pairs_are_those_of_test_with_their_margins(run):
    kept = json.loads((run / "test_pairs.json").read_text())
    margins = [pair["margin"] for pair in kept["pairs"]]
    last = json.loads((run / "summary.json").read_text())["test"]["after"]
    assert kept["total"] == len(margins) == 6 and margins == sorted(margins)
    assert sum(margins) / 6 == pytest.approx(last["rewards/margins"], abs=1e-6)
    for pair in kept["pairs"]:
        assert pair["margin"] == pytest.approx(pair["chosen_reward"] - pair["rejected_reward"])
        line = int(pair["source"].rpartition(":")[2])
        record = json.loads((run.parent / "pairs.jsonl").read_text().splitlines()[line - 1])
        assert record["rejected_message"]["content"] in pair["rejected"]
        assert record["messages"][0]["content"] in pair["prompt"]


def test_the_sentences_hold_the_figures(run):
    found = read_run(run)
    after = found.summary["test"]["after"]  # type: ignore[index]
    assert f"{after['rewards/accuracies']:.1%} of 6 TEST pairs" in verdict(found)
    assert "After 3 of 3 steps" in verdict(found)
    assert "24 preference pairs" in asked(found) and "β = 0.1" in asked(found)


def test_a_run_under_way_has_its_page(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    records = (tmp_path / "run/metrics.jsonl").read_text().splitlines(keepends=True)
    # Cut off in the middle of a line, as by a power failure.
    (tmp_path / "run/metrics.jsonl").write_text("".join(records[:3]) + records[3][:20])
    assert verdict(read_run(tmp_path / "run")).startswith("Under way, after 1 of 3 steps")
    write_report(tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").write_text("")
    for name in ("run.json", "test_pairs.json", "answers.jsonl", "data.json"):
        (tmp_path / "run" / name).unlink()
    assert "no step has been recorded yet" in run_page(read_run(tmp_path / "run"))


def test_a_run_outlives_its_page(run, tmp_path, monkeypatch, capsys):
    def broken(folder):
        raise OSError("no space left on device")

    monkeypatch.setattr("jaxdpo.runs.report.live.write_report", broken)

    def impatient(step, split, metrics):
        raise RuntimeError("the server is away")

    config = settings(
        run.parent, tmp_path / "run", "training.max_steps=2", "training.watch.prompts=0"
    )
    result = fit(load_config(None, config), on_metrics=impatient)
    assert result.summary["steps"] == 2
    said = capsys.readouterr().out
    assert "no space left on device" in said
    # Said once, although there were many records.
    assert said.count("the server is away") == 1


def test_runs_are_compared(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "loss.beta=0.3")
    config = (run / "config.yaml").read_text()
    (tmp_path / "loss.beta=0.3/config.yaml").write_text(config.replace("beta: 0.1", "beta: 0.3"))
    page = tmp_path / "comparison.html"
    main([str(run), str(tmp_path / "loss.beta=0.3"), f"out={page}"])
    assert str(page) in capsys.readouterr().out.replace("\n", "")
    html = page.read_text()
    assert "loss.beta=0.3" in html and ">loss.beta</td><td>0.1</td><td>0.3</td>" in html
    # Equal figures: neither is better than the other.
    assert "perhaps as good" in html
    data = json.loads((run / "data.json").read_text())
    data["TEST"]["sha256"] = "other"
    write_noted(tmp_path / "loss.beta=0.3/data.json", json.dumps(data))
    runs = [read_run(run), read_run(tmp_path / "loss.beta=0.3")]
    assert "different TEST pairs" in comparison_page(runs)
    with pytest.raises(UserError, match="is no run folder"):
        main([str(tmp_path)])


def test_a_sweep_recommends_a_setting_and_names_its_equals():
    def row(beta, accuracy, loss, half):
        name = "rewards/accuracies"
        ends = {f"{name}_low": accuracy - half, f"{name}_high": accuracy + half}
        return {"setting": {"loss.beta": beta}, "after": {name: accuracy, "loss": loss, **ends}}

    rows = [row(0.1, 0.7, 0.6, 0.05), row(0.3, 0.8, 0.5, 0.05), row(1.0, 0.76, 0.5, 0.05)]
    said = recommended(rows)
    assert said.startswith("Recommended: loss.beta=0.3, with rewards/accuracies 0.8")
    assert said.endswith("may be as good: loss.beta=1.0.")
    assert "no other setting" in recommended(rows[:2])
    assert "No setting is recommended" in recommended([{"setting": {"a": 1}, "after": None}])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "light"), (400, "dark")])
def test_the_page_fits_its_window_and_fetches_nothing(run, width, scheme):
    seen = look(run / "report.html", width, scheme)
    assert (seen.overflow, seen.requests, seen.errors, seen.images) == (0, [], [], 0)
