"""`jaxdpo.sample` and `jaxdpo.evaluate` from the command line to their files."""

import json
from pathlib import Path

import pytest

import jaxdpo.evaluate as evaluate
import jaxdpo.sample as sample
from jaxdpo.data.generations import read_generations
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import load_policy
from jaxdpo.rounds.compare import EvaluateConfig, compare
from jaxdpo.sampling import SamplingConfig, answer
from tests.folders import write_model, write_pairs

SHORT = ["sampling.max_new_tokens=12", "sampling.batch_size=8"]


def word(messages, completion, metadata):
    """A criterion of one's own."""
    from jaxdpo.evaluation.judgement import Judgement

    return Judgement(passed="the" in completion, explanation="looks for 'the'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two random models and pairs, ten of them TEST."""
    path = tmp_path_factory.mktemp("evaluate")
    for seed, name in enumerate(("sft", "dpo")):
        write_model(path / name, seed)
    write_pairs(path / "pairs.jsonl", 16, test=10)
    return path


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_sampling_writes_what_the_model_answers():
    arguments = ["model=./sft", "data=pairs.jsonl", "data.split=TEST", "out=answers.jsonl", *SHORT]
    following = sample.main(arguments)
    assert following == "jaxdpo score model=./sft data=answers.jsonl out=answers.scores.jsonl"
    found = read_generations("answers.jsonl")
    assert len(found) == 10 and {each.model for each in found} == {"./sft"}
    how = SamplingConfig(max_new_tokens=12, batch_size=8)
    asked = [each.messages for each in found]
    assert [each.completion for each in found] == answer(load_policy("./sft"), asked, how)
    with pytest.raises(UserError, match="seed was 0, is now 1"):
        sample.main([*arguments, "sampling.seed=1"])


def test_the_best_of_several_is_kept_with_all_of_them():
    # No prompt names a limit: nothing can be judged, and nothing is best.
    with pytest.raises(UserError, match="no answer could be judged by every criterion"):
        sample.main(
            ["model=./sft", "data=pairs.jsonl", "data.limit=4", "out=one.jsonl", "best_of=3",
             "criteria=word_limit", "sampling.temperature=1", *SHORT]
        )  # fmt: skip
    sample.main(
        ["model=./sft", "data=pairs.jsonl", "data.limit=4", "out=one.jsonl", "best_of=3",
         "criteria={name: word_limit, limit: 5}", "sampling.temperature=1", *SHORT]
    )  # fmt: skip
    drawn = read_generations("one.samples.jsonl")
    assert len(drawn) == 12 and len({each.completion for each in drawn}) > 4
    best = read_generations("one.jsonl")
    assert len(best) == 4
    for each in best:
        short = [len(d.completion.split()) <= 5 for d in drawn if d.id == each.id]
        assert (len(each.completion.split()) <= 5) == any(short)
    assert len(Path("one.judgements.jsonl").read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["samples=2"], r"2 answers to a prompt would all be the same at temperature 0"),
        (["best_of=2", "sampling.temperature=1"], "best_of would be ignored without criteria"),
        (["criteria=word_limit"], "criteria would be ignored without best_of"),
        (["server.retries=1"], "server would be ignored: ./sft is no server"),
        (["model=http://x/v1#m", "dtype=float32"], "dtype would be ignored"),
        (["sampling.tempreture=1"], "did you mean 'temperature'"),
    ],
)
def test_what_would_be_ignored_is_refused(settings, message):
    arguments = ["model=./sft", "data=pairs.jsonl", "out=no.jsonl"]
    with pytest.raises(UserError, match=message):
        sample.main([*arguments, *settings])


def test_models_are_evaluated(folder, capsys, monkeypatch):
    arguments = ["sft=./sft", "dpo=./dpo", "--data", "pairs.jsonl", "data.split=TEST", *SHORT]
    criteria = "[{name: word_limit, limit: 6}, 'tests.test_evaluate:word']"
    arguments += [f"--criteria={criteria}", "out=evaluation"]
    assert evaluate.main(arguments) == "jaxdpo serve model=./dpo"
    shown = capsys.readouterr().out
    assert "all criteria" in shown and "sft → dpo" in shown and "evaluation/report.html" in shown
    found = json.loads(Path("evaluation/results.json").read_text())
    rates = {(r["model"], r["criterion"]): r["pass_rate"]["value"] for r in found["rates"]}
    for model in ("sft", "dpo"):
        given = read_generations(f"evaluation/generations/{model}.jsonl")
        short = [len(each.completion.split()) <= 6 for each in given]
        the = ["the" in each.completion for each in given]
        assert rates[model, "word_limit"] == pytest.approx(sum(short) / 10)
        assert rates[model, "word"] == pytest.approx(sum(the) / 10)
        both = sum(a and b for a, b in zip(short, the, strict=True))
        assert rates[model, "all criteria"] == pytest.approx(both / 10)
    for name in ("chart.png", "chart.svg", "report.html", "examples.jsonl", "judgements.jsonl"):
        assert (folder / "evaluation" / name).stat().st_size > 500

    written = (folder / "evaluation/judgements.jsonl").read_text().splitlines()
    judgements = [json.loads(line) for line in written]
    assert len(judgements) == 10 * 2 * 2
    assert {(j["model"], j["criterion"]) for j in judgements} == {
        (model, name) for model in ("sft", "dpo") for name in ("word_limit", "word")
    }

    before = (folder / "evaluation/report.html").read_text()
    monkeypatch.setattr("jaxdpo.generation.generators.complete", None)  # Nothing is sampled again.
    evaluate.main(arguments)
    assert (folder / "evaluation/report.html").read_text() == before


def test_models_in_memory_are_compared(folder):
    config = EvaluateConfig.model_validate(
        {
            "data": {"path": "pairs.jsonl", "limit": 4},
            "out": "memory",
            "criteria": "tests.test_evaluate:word",
            "sampling": {"max_new_tokens": 12, "batch_size": 8},
        }
    )
    found = compare(config, {"here": load_policy("./dpo")})
    assert found.models == {"here": "./dpo"} and len(found.rows) == 4
    with pytest.raises(UserError, match="no model to evaluate"):
        compare(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["critera=word_limit"], r"critera: unknown key; did you mean 'criteria'\?; a model"),
        (["a=./sft"], "nothing judges the answers"),
        (["b/a=./sft", "criteria=word_limit"], "can't name a file"),
        (["a=./sft", "criteria=word_limt"], "did you mean 'word_limit'"),
        (["a=./sft", "criteria=word_limit", "server.timeout=3"], "no model is a server's address"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate.main([*arguments, "data=pairs.jsonl", "out=mistake"])


def test_criteria_are_held_against_people(capsys, folder):
    asked = {"role": "user", "content": "Why? Answer in at most 3 words."}
    said = {"So it is": "PASS", "It is so, I think": "PASS", "a b c d": "FAIL"}
    lines = [
        {"messages": [asked, {"role": "assistant", "content": text}], "judgement": judgement}
        for text, judgement in said.items()
    ]
    (folder / "judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate.main(["--alignment", "judged.jsonl", "criteria=word_limit", "out=aligned"])
    shown = capsys.readouterr().out
    assert "0.667" in shown and "judged.jsonl:2: people PASS" in shown
    assert json.loads((folder / "aligned/alignment_word_limit.json").read_text())["answers"] == 3


def test_the_datas_own_answers_take_part(folder):
    criteria = "criteria=tests.test_evaluate:word"
    evaluate.main(
        ["dpo=./dpo", "gold=@answers", "data=pairs.jsonl", "data.limit=4", criteria, "out=gold",
         *SHORT]
    )  # fmt: skip
    given = read_generations("gold/generations/gold.jsonl")
    pairs = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()[:4]]
    assert [each.completion for each in given] == [p["messages"][-1]["content"] for p in pairs]
    found = json.loads(Path("gold/results.json").read_text())
    assert list(found["models"]) == ["dpo", "gold"] and found["models"]["gold"] == "@answers"
