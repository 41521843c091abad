"""Prompts → the studio by browser → pairs → training → a blind match that the new model wins."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request

import pytest

from jaxdpo.config import load_config
from jaxdpo.feedback.to_file import CollectConfig, collect_to_file
from jaxdpo.quickstart.task import score
from jaxdpo.runs.fit import fit
from jaxdpo.storage.files import shipped

# So many that a better model wins significantly: with 40 of each a match ended 15 to 8 with 17
# ties, which equal models reach in every fifth match.
ROWS, MATCHES = 120, 150
# Each of these seeds of the training is a test; answers are drawn anew in each.
SEEDS = os.environ.get("JAXDPO_TEST_STUDIO", "").split(",")


class Served:
    """`jaxdpo studio` as its user starts it."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxdpo.studio", "port=0", *arguments],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"http://[\d.:]+", line):
                self.url = found[0]
                break
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=60)
                return
            except OSError:
                assert self.process.poll() is None
                time.sleep(0.1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=60)


def prompts(split, path, count):
    with open(shipped("@quickstart/pairs.jsonl"), encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    asked = {json.dumps(line["messages"][:-1]) for line in lines if line["split"] == split}
    found = [{"messages": json.loads(each), "split": split} for each in sorted(asked)[:count]]
    path.write_text("".join(json.dumps(each) + "\n" for each in found))
    return str(path)


def value(asked, answer):
    """Returns how good an answer is by the task's own rule."""
    judgement = score([{"role": "user", "content": asked}], answer.strip(), {})
    return judgement.score or 0.0


def choose(page):
    """Chooses the best answer of the last turn by its key, or calls it a tie."""
    answers = page.locator(".answers:not(.earlier) .answer > .text").all_inner_texts()
    asked = page.locator(".turn .said").last.inner_text().removeprefix("user").strip()
    values = [value(asked, text) for text in answers]
    best = max(range(len(values)), key=values.__getitem__)
    page.locator("h1").click()
    with page.expect_response(re.compile("/api/acts")):
        page.keyboard.press("t" if max(values) == min(values) else str(best + 1))


@pytest.mark.parametrize("seed", SEEDS)
def test_feedback_by_browser_makes_a_model_that_wins(visit, tmp_path, seed):
    if not seed:
        pytest.skip("trains, for some minutes; set JAXDPO_TEST_STUDIO=1, or to several seeds: 1,2")
    folder, run = tmp_path / "feedback", tmp_path / "run"
    sampling = ("sampling.temperature=1", "sampling.max_new_tokens=40")
    rows = prompts("TRAIN", tmp_path / "train.jsonl", ROWS)
    sft = "models={sft: '@quickstart/model'}"
    with Served(sft, f"data={rows}", f"folder={folder}", "answers=4", *sampling) as studio:
        page = visit(studio, "/review", "ann")
        for row in range(ROWS):
            page.locator("#count", has_text=f"{row} done").wait_for()
            page.locator("[data-focus=choose-3]").wait_for()
            choose(page)
            with page.expect_response(re.compile("/api/review")):
                page.keyboard.press("Enter")
        page.locator("#status", has_text="No rows are left").wait_for()
    pairs = tmp_path / "pairs.jsonl"
    collected = collect_to_file(
        CollectConfig(source="events", data=str(folder), out=str(pairs), test_fraction=0)
    )
    assert len(collected.pairs) > ROWS
    overrides = [f"data.path={pairs}", f"training.folder={run}", "data.test_fraction=0.1",
                 "training.epochs=8", "batch.size=16", f"training.seed={seed}"]  # fmt: skip
    fit(load_config(shipped("@configs/quickstart.yaml"), overrides))
    tested = prompts("TEST", tmp_path / "test.jsonl", MATCHES)
    both = f"models={{sft: '@quickstart/model', dpo: '{run}'}}"
    with Served(both, f"data={tested}", f"folder={folder}", *sampling) as studio:
        page = visit(studio, "/compare", "ann")
        page.click("#begin")
        for row in range(MATCHES):
            page.locator("[data-focus=choose-1]").wait_for()
            choose(page)
            page.locator("#score", has_text=f"{row + 1} comparisons").wait_for()
        shown = page.locator("#score").inner_text()
    print(len(collected.pairs), "pairs;", shown)
    found = re.search(r"sft wins (\d+)% .* p = ([\d.e-]+)\)", shown)
    assert found and int(found[1]) < 50 and float(found[2]) < 0.05, shown
