"""Criteria → pairs → training, round after round: every file, and what an interruption changes."""

import json

import pytest

from jaxdpo.cli.console import Reporter
from jaxdpo.cli.settings import load_settings
from jaxdpo.data.config import DataConfig
from jaxdpo.data.generations import read_generations
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.errors import UserError
from jaxdpo.evaluation.judgement import Judgement
from jaxdpo.feedback.store import FeedbackStore
from jaxdpo.iterate import main as iterate_command
from jaxdpo.prefer import main as prefer_command
from jaxdpo.rounds.iterate import RoundsConfig, round_config
from jaxdpo.rounds.make_pairs import PairingConfig, make_pairs
from tests.folders import write_model

CALLS = []
# After so many judgements the criterion below is interrupted; None: never.
INTERRUPTED_AT = None


def short(messages, completion, metadata):
    """Passes the shorter answers; a passing one also has the mark of its prompt's metadata."""
    if len(CALLS) == INTERRUPTED_AT:
        raise KeyboardInterrupt
    CALLS.append(completion)
    return Judgement(
        passed=len(completion) < metadata["limit"],
        score=-float(len(completion)),
        explanation=f"{len(completion)} characters",
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    write_model(folder / "model")
    lines = [
        {
            "messages": [{"role": "user", "content": f"the red cat {'sees ' * (i % 4)}{i}"}],
            "split": "TEST" if i % 5 == 0 else "TRAIN",
            "metadata": {"limit": 20},
        }
        for i in range(15)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def arguments(inputs, folder):
    return [
        f"model={inputs}/model", f"data={inputs}/prompts.jsonl", f"folder={folder}",
        f"criteria={{function: '{__name__}:short'}}", "samples=3", "sampling.max_new_tokens=12",
    ]  # fmt: skip


def test_pairs_from_criteria_in_one_command(inputs, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    prefer_command(arguments(inputs, whole))
    shown = capsys.readouterr().out
    assert "Answers that pass" in shown and f"written: {whole}/pairs.jsonl" in shown
    names = {path.name for path in whole.iterdir()}
    assert names == {
        "config.yaml", "generations.jsonl", "generations.settings.json", "judgements.jsonl",
        "judgements.settings.json", "pairs.jsonl",
    }  # fmt: skip
    answers = read_generations(whole / "generations.jsonl")
    assert len(answers) == 45
    judged = [json.loads(line) for line in (whole / "judgements.jsonl").read_text().splitlines()]
    assert [line["completion"] for line in judged] == [each.completion for each in answers]
    assert all(line["passed"] == (len(line["completion"]) < 20) for line in judged)
    # By hand: of each prompt's answers the shortest, first of equals, against the longest.
    by_prompt = {}
    for each in answers:
        by_prompt.setdefault(each.id, []).append(each.completion)
    usable = [[t for t in texts if t.strip() and "\0" not in t] for texts in by_prompt.values()]
    best = [(min(texts, key=len), max(texts, key=len)) for texts in usable]
    expected = [both for both in best if len(both[0]) < len(both[1])]
    pairs = read_pairs(str(whole / "pairs.jsonl"), DataConfig(path="")).pairs
    assert [(p.chosen[0]["content"], p.rejected[0]["content"]) for p in pairs] == expected
    assert {pair.split for pair in pairs} == {"TRAIN", "TEST"}
    why = pairs[0].metadata["feedback"]
    assert (pairs[0].metadata["limit"], why["source"]) == (20, "criteria")
    assert why["chosen"]["judgements"][0]["criterion"] == "short"
    # Interrupted while it judges, and continued: the same files, and nothing is judged twice.
    monkeypatch.setattr(f"{__name__}.INTERRUPTED_AT", 30)
    CALLS.clear()
    with pytest.raises(KeyboardInterrupt):
        prefer_command(arguments(inputs, cut))
    assert not (cut / "judgements.jsonl").exists() and not (cut / "pairs.jsonl").exists()
    monkeypatch.setattr(f"{__name__}.INTERRUPTED_AT", None)
    prefer_command(arguments(inputs, cut))
    assert len(CALLS) == 45
    for name in names - {"config.yaml", "pairs.jsonl"}:
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    before = len(CALLS)
    prefer_command(arguments(inputs, whole))
    assert len(CALLS) == before
    # Other criteria are not mixed with what these have said.
    with pytest.raises(UserError, match="belongs to other settings: criteria was"):
        prefer_command([*arguments(inputs, whole)[:3], "criteria=json", "samples=3",
                        "sampling.max_new_tokens=12"])  # fmt: skip


def test_rounds(inputs, tmp_path, capsys):
    folder = tmp_path / "rounds"
    command = [
        *arguments(inputs, folder), "rounds=2", "reference=first",
        "train={data: {max_length: 128, cache_dir: " + str(tmp_path / "cache") + "}, "
        "batch: {size: 4}, optimizer: {learning_rate: 0.001}, training: {completions: 0}}",
    ]  # fmt: skip
    following = iterate_command(command)
    assert following is not None and f"after={folder}/round_2/run data=" in following
    shown = capsys.readouterr().out
    assert "Answers that pass, by round" in shown and f"{folder}/round_2/run/model" in shown
    rounds = json.loads((folder / "rounds.json").read_text())
    assert [set(each) for each in rounds] == [{"short", "all"}] * 3
    assert (folder / "rounds.png").read_bytes().startswith(b"\x89PNG")
    for part, asked in (("round_1", 45), ("round_2", 45), ("final", 45)):
        assert len(read_generations(folder / part / "generations.jsonl")) == asked
    # The second round answers with the first one's model, and trains it.
    first, second, final = (
        json.loads((folder / part / "generations.settings.json").read_text())["model"]
        for part in ("round_1", "round_2", "final")
    )
    assert len({first, second, final}) == 3
    model = {line.model for line in read_generations(folder / "round_2" / "generations.jsonl")}
    assert model == {f"{folder}/round_1/run/model"}
    # The rates are those of TEST prompts, counted here by hand.
    lines = (folder / "final" / "judgements.jsonl").read_text().splitlines()
    judged = [json.loads(line) for line in lines]
    tested = [line["passed"] for line in judged if line["split"] == "TEST"]
    assert len(tested) == 9
    assert rounds[2]["all"]["value"] == pytest.approx(sum(tested) / 9)
    # The same command again does nothing twice.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    calls = len(CALLS)
    iterate_command(command)
    assert len(CALLS) == calls
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_the_reference_is_the_rounds_own_start_or_the_first_model(tmp_path):
    base = {"model": "m", "data": {"path": "p"}, "criteria": "json", "folder": str(tmp_path)}
    train = {"loss": {"beta": 0.3}}
    config = RoundsConfig.model_validate({**base, "train": train})
    assert round_config(config, 2, "later").reference.path is None
    first = config.model_copy(update={"reference": "first"})
    run = round_config(first, 2, "later")
    assert (run.model.path, run.reference.path, run.loss.beta) == ("later", "m", 0.3)
    assert run.data.path == f"{tmp_path}/round_2/pairs.jsonl"
    assert round_config(first, 1, "m").reference.path is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train={model: {path: x}}", "train.model.path: the rounds set it"),
        ("train={loss: {bta: 1}}", "train: loss.bta: unknown key; did you mean 'beta'"),
        ("train=nowhere.yaml", "nowhere.yaml: there is no such configuration file"),
        ("sampling.temperature=0", "all answers to a prompt would be the same"),
        ("model=http://x/v1#m", "only a model that is here can be trained"),
        ("samples=1", "samples: Input should be greater than or equal to 2"),
        ("criteria=[]", "criteria: there are none"),
        ("rouns=3", "rouns: unknown key; did you mean 'rounds'"),
    ],
)
def test_mistakes_are_said_before_anything_is_sampled(tmp_path, override, message):
    given = ["model=m", "data.path=p", "criteria=json", f"folder={tmp_path / 'f'}", override]
    with pytest.raises(UserError) as refused:
        config = load_settings(RoundsConfig, None, given)
        round_config(config, 1, config.model)
    assert message in str(refused.value)
    assert not (tmp_path / "f").exists()


def test_where_all_answers_are_equal_there_are_no_pairs(inputs, tmp_path):
    values = {"model": f"{inputs}/model", "data": {"path": f"{inputs}/prompts.jsonl", "limit": 3},
              "criteria": {"name": "word_limit", "limit": 500}, "folder": str(tmp_path / "f"),
              "samples": 3, "sampling": {"max_new_tokens": 12}}  # fmt: skip
    made = make_pairs(PairingConfig.model_validate(values), Reporter(quiet=True))
    assert made.pairs is None and made.rates["all"].value == 1
    assert len(made.collected.no_pair["all-equal"]) == 3
    assert not (tmp_path / "f" / "pairs.jsonl").exists()


def test_a_round_trains_on_what_people_said_in_a_studio(inputs, tmp_path, capsys):
    store = FeedbackStore(tmp_path / "feedback")
    for i in range(4):
        turn = [
            {"event": "prompt", "messages": [{"role": "user", "content": f"the red cat {i}"}],
             "split": "TRAIN"},
            {"event": "generated", "output": f"{i}a", "content": "sees"},
            {"event": "generated", "output": f"{i}b", "content": "the cat"},
            {"event": "selected", "output": f"{i}b"},
        ]  # fmt: skip
        store.append([{"id": f"{i}-{n}", "conversation": f"c{i}", **e} for n, e in enumerate(turn)])
    folder = tmp_path / "rounds"
    # The criterion passes every answer with one score, so that people alone say what is better.
    command = [
        f"model={inputs}/model", f"data={inputs}/prompts.jsonl", "data.limit=2", "samples=2",
        f"folder={folder}", "criteria={name: word_limit, limit: 9999}", "rounds=1",
        f"feedback={tmp_path / 'feedback'}", "sampling.max_new_tokens=4",
        "train={data: {max_length: 128, cache_dir: " + str(tmp_path / "cache") + "}, "
        "batch: {size: 2}, training: {completions: 0}}",
    ]  # fmt: skip
    iterate_command(command)
    assert "feedback: 4 pairs, 4 TRAIN and 0 TEST (user_choice 4)" in capsys.readouterr().out
    used = read_pairs(str(folder / "round_1" / "pairs.jsonl"), DataConfig(path="x")).pairs
    assert [(p.chosen[0]["content"], p.rejected[0]["content"]) for p in used] == [
        ("the cat", "sees")
    ] * 4
    assert (folder / "round_1" / "run" / "model" / "config.json").exists()
    # What came in afterwards belongs to the next round: the same command finds this one done.
    before = (folder / "round_1" / "pairs.jsonl").read_bytes()
    store.append([{"id": "late", "conversation": "c0", "event": "accepted", "output": "0a"}])
    iterate_command(command)
    assert (folder / "round_1" / "pairs.jsonl").read_bytes() == before
