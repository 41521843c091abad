"""The pages of an evaluation and of an inspection, as a browser shows them."""

import json
from pathlib import Path

import pytest

from jaxdpo.evaluation.comparison import compare_rows
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.evaluation.report.html import page
from jaxdpo.inspect import main
from tests.browser import look
from tests.evaluation.test_comparison import FAIL, MODELS, NASTY, PASS, row
from tests.inspection.test_large import records

WINDOWS = [(1280, "light"), (400, "light"), (400, "dark")]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("evaluation") / "report.html"
    rows = [row(n, PASS if n % 3 else FAIL, PASS) for n in range(6)]
    rows.append(row(6, Judgement(passed=True, explanation=f"{NASTY} {'w' * 300}"), FAIL))
    file.write_text(page(compare_rows(MODELS, ["short", "likes"], rows, {})))
    return file


@pytest.fixture(scope="module")
def inspection(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inspection")
    pairs = [{**pair, "chosen": f"{NASTY} {pair['chosen']}"} for pair in records(30)]
    pairs += pairs[:12]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    main([str(folder / "pairs.jsonl"), f"report={folder / 'inspect.html'}"])
    return folder / "inspect.html"


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_an_evaluation_fits_its_window_and_fetches_nothing(evaluation, width, scheme):
    seen = look(evaluation, width, scheme)
    assert (seen.overflow, seen.requests, seen.errors, seen.images) == (0, [], [], 0)


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_an_inspection_fits_its_window_and_fetches_nothing(inspection, width, scheme):
    seen = look(inspection, width, scheme)
    assert (seen.overflow, seen.requests, seen.errors, seen.images) == (0, [], [], 0)
