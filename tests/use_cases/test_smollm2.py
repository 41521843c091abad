"""Tasks on a language model: criteria on answers judged by hand, splits, the page of results."""

import json
import random

import pytest

from jaxdpo.errors import UserError
from jaxdpo.evaluation.criteria.spec import criterion_named
from jaxdpo.use_cases.smollm2 import from_text
from jaxdpo.use_cases.smollm2.__main__ import main
from jaxdpo.use_cases.smollm2.quality import evades, is_tautology, repeats_itself
from jaxdpo.use_cases.smollm2.report import write_report
from jaxdpo.use_cases.smollm2.tasks import TASKS
from jaxdpo.use_cases.smollm2.topics import TOPICS

SPLITS = ("TRAIN", "VALIDATION", "TEST")
TAX, WHALE = {"topic": "tax", "limit": 8}, {"topic": "whale"}
TEXT = "Text: The mill was built in 1880. The mill stands in Oslo.\nQuestion: …"


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_splits_share_no_topic(task):
    drawn = {split: task.draw(split, 30, random.Random(1)) for split in SPLITS}
    asked = {split: {one.prompt for one in prompts} for split, prompts in drawn.items()}
    assert all(len(prompts) == 30 for prompts in asked.values())
    assert task.draw("TEST", 30, random.Random(1)) == drawn["TEST"]
    assert task.draw("TEST", 30, random.Random(2)) != drawn["TEST"]
    topics = {
        split: {one.metadata.get("topic") for one in drawn[split]} - {None} for split in SPLITS
    }
    for one, other in (("TRAIN", "TEST"), ("TRAIN", "VALIDATION"), ("VALIDATION", "TEST")):
        assert not asked[one] & asked[other]
        assert not topics[one] & topics[other]
        for kind in from_text.KINDS:
            found = from_text.SUBJECTS
            assert not set(found[one][kind]) & set(found[other][kind])
    assert not set(TOPICS["TRAIN"]) & set(TOPICS["TEST"])


@pytest.mark.parametrize(
    ("task", "metadata", "answer", "fails"),
    [
        ("word_limit", TAX, "A tax is money paid to a government.", None),
        ("word_limit", {**TAX, "limit": 6}, "A tax is money paid to a government.", "at most 6"),
        ("word_limit", TAX, "A tax is a tax.", "says something"),
        ("word_limit", TAX, "Money that is paid to a government.", "names the tax"),
        ("word_limit", TAX, "A tax is money paid to", "one whole sentence"),
        ("word_limit", TAX, "A tax tax is money paid.", "no repetition"),
        ("word_limit", TAX, "I'm a tax paid to a government.", "no evasion"),
        ("dictionary", WHALE, "whale: a huge mammal of the sea", None),
        ("dictionary", WHALE, "A whale is a huge mammal of the sea.", "begins with"),
        ("dictionary", WHALE, "whale: meaning", "says something"),
        ("dictionary", WHALE, "whale: a huge mammal\n\nwhale: an animal", "one line"),
        ("from_text", {"value": "1880"}, "The mill was built in 1880.", None),
        ("from_text", {"value": "1880"}, "It was built in 1881.", "says 1880"),
        ("from_text", {"value": "1880"}, "The text does not say 1880.", "does not refuse"),
        ("from_text", {"value": None}, "The text does not say.", None),
        ("from_text", {"value": None}, "The mill has 4 rooms.", "says that the text does not say"),
        ("from_text", {"value": None}, "The text does not say if 40.", "no number made up"),
    ],
)  # fmt: skip
def test_criteria(task, metadata, answer, fails):
    judge = criterion_named(TASKS[task].criterion)
    judgement = judge.score([{"role": "user", "content": TEXT}], answer, metadata)
    assert judgement.passed == (fails is None), judgement.explanation
    if fails is not None:
        assert fails in judgement.explanation
        assert judgement.score is not None and judgement.score < 0.61


def test_more_prompts_than_there_are():
    # 20 topics in two wordings.
    with pytest.raises(UserError, match="only about 40 such prompts, and not 41"):
        TASKS["dictionary"].draw("VALIDATION", 41, random.Random(0))


def test_faults():
    assert is_tautology("A painting is a magical creature.", ["painting"])
    assert not is_tautology("A painting shows colours on canvas.", ["painting"])
    assert repeats_itself("on the hill, and on the hill again")
    assert not repeats_itself("on the hill, and on the mountain")
    assert evades("Sure, here is an answer.") and not evades("The surest answer is this.")


def lines(model: str, temperature: float, passed: list[bool]) -> list[dict]:
    return [
        {
            "model": model, "temperature": temperature, "prompt": f"Describe a {n} `x`.",
            "answer": "A thing\nof two | words.", "passed": each,
            "why": "right in all" if each else f"not: at most {n} words, one whole sentence",
        }
        for n, each in enumerate(passed)
    ]  # fmt: skip


def test_page(tmp_path):
    with pytest.raises(UserError, match=r"holds no result\.json"):
        write_report(tmp_path)
    for seed in (0, 1):
        answers = [
            *lines("SFT on chosen", 0.0, [False] * 8 + [True] * 2),
            *lines("DPO", 0.0, [False] * 2 + [True] * 8),
        ]
        result = {
            "task": "word_limit", "seed": seed, "pairs": 30, "cpu_seconds": 120, "answers": answers
        }  # fmt: skip
        folder = tmp_path / "word_limit" / f"seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path)
    # Wilson's interval of 16 of 20, and of 4 of 20; Newcombe's and McNemar's for 12 against 0.
    assert "| DPO | 80% (58 to 92%) of 20 | 6.0 | at most words 4, one whole sentence 4 |" in page
    assert "| SFT on chosen | 20% (8 to 42%) of 20 |" in page
    assert "SFT on chosen → DPO: +60 points" in page and "p 0.00049" in page
    assert "75% (" in page and "fewer failures" in page
    assert "`A thing ⏎ of two | words.` ✗ (not: at most 0 words" in page
    assert (tmp_path / "results.md").read_text() == page
    page_of = tmp_path / "page.md"
    page_of.write_text("Before.\n<!-- results -->\nold\n<!-- end of results -->\nAfter.\n")
    main(["report", f"folder={tmp_path}", f"page={page_of}"])
    whole = page_of.read_text()
    assert whole.startswith("Before.\n<!-- results -->\n\n### Word limit") and "old" not in whole
    assert page in whole and whole.endswith("\n<!-- end of results -->\nAfter.\n")
    with pytest.raises(UserError, match="has no lines <!-- results -->"):
        write_report(tmp_path, tmp_path / "results.md")
