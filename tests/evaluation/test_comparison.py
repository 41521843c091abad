"""The figures of an evaluation of answers whose judgements are given, worked out by hand."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from jaxdpo.data.generations import generation
from jaxdpo.data.reading.prompts import Prompt
from jaxdpo.evaluation.best import best_of
from jaxdpo.evaluation.comparison import compare_rows
from jaxdpo.evaluation.judgement import Example, Judgement
from jaxdpo.evaluation.judges.client import JudgeClient, Reply
from jaxdpo.evaluation.judges.pairwise import Preference, prefer
from jaxdpo.evaluation.report.charts import chart
from jaxdpo.evaluation.report.html import page
from jaxdpo.evaluation.report.tables import tables
from jaxdpo.evaluation.results import ALL, Row, judgement_of, unjudged
from jaxdpo.rounds.compare import results, write_files

NASTY = '</script><img src=x onerror="alert(1)"> & <b>'
MODELS = {"sft": "models/sft", "dpo": "runs/dpo"}
PASS, FAIL = Judgement(passed=True), Judgement(passed=False, explanation="too long")
NONE = Judgement(explanation="no judgement: it rambled")


def row(number, sft, dpo, likes=(1.0, 2.0), verdict="second"):
    prompt = Prompt(
        f"id{number}", ({"role": "user", "content": f"{NASTY} {number}"},), source="p:1"
    )
    short = {"sft": sft, "dpo": dpo}
    return Row(
        prompt,
        {m: generation(prompt, 0, m, f"{m} {NASTY}", finished=m == "dpo") for m in MODELS},
        {
            model: {"short": short[model], "likes": Judgement(score=like)}
            for model, like in zip(MODELS, likes, strict=True)
        },
        {("sft", "dpo"): Preference(verdict, "because")},
    )


@pytest.fixture(scope="module")
def comparison():
    """Both pass 2, dpo alone 8, sft alone 1, neither 3; one that sft's judge could not read."""
    rows = [row(n, PASS, PASS, verdict="tie") for n in range(2)]
    rows += [row(n, FAIL, PASS, likes=(n / 10, n / 5)) for n in range(2, 10)]
    rows += [row(10, PASS, FAIL, verdict="first")]
    rows += [row(n, FAIL, FAIL, verdict=None if n == 11 else "tie") for n in (11, 12, 13)]
    rows += [row(14, NONE, PASS)]
    return compare_rows(MODELS, ["short", "likes"], rows, {"requests": 30.0})


def test_rates(comparison):
    short = {model: comparison.rate(model, "short") for model in MODELS}
    assert (short["sft"].judged, short["sft"].unjudged) == (14, 1)
    assert short["sft"].pass_rate.value == pytest.approx(3 / 14)
    assert short["dpo"].pass_rate.value == pytest.approx(11 / 15)
    likes = comparison.rate("dpo", "likes")
    assert math.isnan(likes.pass_rate.value) and likes.unjudged == 0
    assert likes.mean_score.value == pytest.approx((7 * 2 + sum(range(2, 10)) / 5) / 15)
    assert comparison.cut_off == {"sft": 15, "dpo": 0}
    # One criterion that passes and fails: there is nothing to put together.
    assert comparison.criteria == ("short", "likes")


def test_models_are_compared_where_both_were_judged(comparison):
    short = next(v for v in comparison.versus if v.criterion == "short")
    assert short.counts == (2, 1, 8, 3)
    assert short.difference.value == pytest.approx(7 / 14)
    assert short.fewer_failures.value == pytest.approx(1 - 4 / 11)
    assert short.p_value == pytest.approx(2 * (1 + 9) / 2**9)
    duel = comparison.head_to_head[0]
    assert (duel.wins, duel.losses, duel.ties, duel.failed) == (9, 1, 4, 1)
    assert duel.win_rate.value == pytest.approx(11 / 14)
    assert duel.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    raw = [*(v.p_value for v in comparison.versus), duel.p_value]
    assert min(raw) < 0.05
    assert duel.adjusted == pytest.approx(max(duel.p_value * 2, min(raw) * 3))


def test_what_could_not_be_judged_is_listed(comparison):
    assert list(unjudged(comparison)) == [
        ("p:1", "sft and dpo", "head to head", "because"),
        ("p:1", "sft", "short", "no judgement: it rambled"),
    ]


def test_all_criteria_pass_together():
    said = {"a": PASS, "b": FAIL, "likes": Judgement(score=1.0)}
    prompt = Prompt("x", ({"role": "user", "content": "?"},))
    answers = {"m": generation(prompt, 0, "m", "!", True)}

    def together(**changed):
        return judgement_of(Row(prompt, answers, {"m": said | changed}), "m", ALL)

    assert together() == Judgement(passed=False, explanation="b")
    assert together(b=PASS).passed is True
    assert not together(b=NONE).judged
    found = compare_rows({"m": "x"}, ["a", "b"], [Row(prompt, answers, {"m": said})], {})
    assert found.criteria == ("a", "b", ALL)


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_files(comparison, tmp_path):
    write_files(comparison, tmp_path)
    figures = json.loads((tmp_path / "results.json").read_text())
    assert figures == json.loads(json.dumps(results(comparison)))
    assert figures["prompts"] == 15 and figures["spent"] == {"requests": 30.0}
    # What is undefined is null and not a number.
    assert figures["rates"][2]["pass_rate"] == {"value": None, "low": None, "high": None}
    examples = [json.loads(line) for line in lines(tmp_path / "examples.jsonl")]
    assert len(examples) == 15
    assert examples[3]["answers"]["sft"]["judgements"]["short"]["explanation"] == "too long"
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(tmp_path / "chart.svg")


def test_the_chart_is_the_same_for_the_same_figures(comparison):
    assert chart(comparison, "svg") == chart(comparison, "svg")
    text = chart(comparison, "svg").decode()
    assert "sft vs dpo" in text and "73%" in text and "21%" in text


def test_tables_say_all(comparison):
    shown = "\n".join(" | ".join(line) for table in tables(comparison) for line in table.rows)
    for expected in ("73% (48% to 89%)", "14, 1 could not be", "sft → dpo", "dpo over sft", "64%"):
        assert expected in shown


class Parsed(HTMLParser):
    """Tags and scripts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts.append(data)


def test_the_report_needs_nothing_else_and_runs_nothing_from_answers(comparison):
    parsed = Parsed(page(comparison))
    assert not [tag for tag, _ in parsed.tags if tag in ("img", "link", "iframe", "b")]
    assert not [a for tag, a in parsed.tags if "src" in a or "onerror" in a]
    data = json.loads(parsed.scripts[0])
    assert data["rows"][0]["answers"]["sft"] == f"sft {NASTY}"
    assert comparison._repr_html_().startswith("<svg")
    assert repr(comparison).startswith("Comparison(sft, dpo: dpo wins by short: dpo passes on 73%")


_PAGE = """
class Node {
  constructor(tag) { this.tag = tag; this.children = []; this.listeners = {};
    if (tag === "input") this.value = ""; }
  append(...added) {
    this.children.push(...added);
    if (this.tag === "select") this.value ??= "";
  }
  replaceChildren() { this.children = []; }
  addEventListener(name, f) { this.listeners[name] = f; }
}
const byId = {};
globalThis.document = {
  getElementById: (id) => byId[id] ??= new Node(id),
  createElement: (tag) => new Node(tag),
};
document.getElementById("data").textContent = process.argv[1];
"""
_ASK = """
const of = {};
for (const wanted of ["all", "won", "lost", "tied", "none"]) {
  outcome.value = wanted; judged.value = "cshort"; show(); const short = list.children.length;
  judged.value = "duel"; show(); of[wanted] = [short, list.children.length];
}
outcome.value = "all"; wanted.value = "no such text"; show();
console.log(JSON.stringify([of, list.children.length, shown.textContent]));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_reports_filters(comparison):
    data, script = Parsed(page(comparison)).scripts
    ran = subprocess.run(
        ["node", "-e", _PAGE + script + _ASK, data], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    counts, left, said = json.loads(ran.stdout)
    assert counts == {
        "all": [15, 15],
        "won": [8, 9],
        "lost": [1, 1],
        "tied": [5, 4],
        "none": [1, 1],
    }
    assert (left, said) == (0, "0 of 15 prompts")


def test_an_answer_wins_if_it_does_in_both_orders():
    """Three judges in one: by length, by place, and one that says nothing that can be read."""

    def ask(conversations):
        for conversation in conversations:
            shown = json.loads(conversation[1]["content"])
            kind = shown["conversation"][0]["content"]
            if kind == "length":
                shorter = "A" if len(shown["A"]) < len(shown["B"]) else "B"
                yield Reply(f"{shorter} is shorter.\n{shorter}")
            else:
                yield Reply({"place": "The first.\nA", "equal": "TIE", "mute": "Well"}[kind])

    kinds = ["length", "length", "place", "equal", "mute"]
    firsts = [
        Example([{"role": "user", "content": kind}], "short" if n else "a long answer")
        for n, kind in enumerate(kinds)
    ]
    seconds = [each._replace(completion="not so short") for each in firsts]
    found = prefer(JudgeClient(ask), "The shorter, the better.", firsts, seconds)
    assert [each.verdict for each in found] == ["second", "first", "tie", "tie", None]
    assert "did not reply as asked" in found[4].explanation


def test_the_best_answer_is_the_first_of_the_highest():
    prompts = [Prompt(name, ({"role": "user", "content": name},)) for name in "ab"]
    answers = [generation(p, n, "m", f"{p.id}{n}", True) for p in prompts for n in range(3)]
    scores = [0.2, 0.9, 0.9, 0.1, 0.1, None]
    judgements = [{"s": Judgement(score=s), "t": PASS} for s in scores]
    assert [a.completion for a in best_of(answers, judgements)] == ["a1", "b0"]
    judgements[3:] = [{"s": NONE, "t": PASS}] * 3
    assert [a.completion for a in best_of(answers, judgements)] == ["a1"]


def test_nothing_in_the_page_is_fetched(comparison):
    names = r"(xmlns(:\w+)?|rdf:\w+)=\"[^\"]*\""
    assert not re.findall(r"https?://|url\((?!#)", re.sub(names, "", page(comparison)))
