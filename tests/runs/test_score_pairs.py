"""`jaxdpo score`: log-probs of torch `transformers`; rewards, ranks and selections by hand."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import jaxdpo
from jaxdpo.cli.settings import load_settings
from jaxdpo.data.config import DataConfig
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import load_policy
from jaxdpo.runs.score_config import ScoreConfig, Selection
from jaxdpo.runs.score_table import Scored, margins, ranks, score_lines, select_pairs, tables
from jaxdpo.score import main
from tests.folders import write_model, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two random models, pairs, a benchmark of reward models, and several answers a prompt."""
    path = tmp_path_factory.mktemp("score")
    for seed, name in enumerate(("sft", "dpo")):
        write_model(path / name, seed)
    write_pairs(path / "pairs.jsonl", 30, test=10)
    bench = [
        {
            "prompt": f"what is {i}",
            "chosen": f"the cat sees {i}",
            "rejected": "bad " * (i + 1),
            "subset": "chat" if i < 5 else "safety",
        }
        for i in range(12)
    ]
    (path / "bench.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bench))
    answers = [
        {
            "id": f"{i}",
            "messages": [{"role": "user", "content": f"where is {i}"}],
            "completion": f"{'near ' * (k + 1)}the house",
            "sample": k,
            "model": "sft",
            "split": "TRAIN",
            "metadata": {"topic": "odd" if i % 2 else "even"},
        }
        for i in range(4)
        for k in range(3)
    ]
    (path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    return path


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def config_of(path: str) -> DataConfig:
    return DataConfig.model_validate({"path": path})


def scored(**fields):
    values = {"model": "./dpo", "reference": "./sft", "overwrite": True, "out": "scores.jsonl"}
    return jaxdpo.score(ScoreConfig.model_validate({**values, **fields}))


def torch_logps(model: str, prompt: list[dict], answer: str) -> tuple[float, int]:
    """The log-prob of an answer and its end token, summed, and their number."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    said = tokenizer.apply_chat_template(
        [*prompt, {"role": "assistant", "content": answer}], tokenize=False
    )
    before = tokenizer(asked, add_special_tokens=False)["input_ids"]
    # The template writes a line feed after the end token, which no answer has.
    whole = tokenizer(said.rstrip("\n"), add_special_tokens=False)["input_ids"]
    assert whole[: len(before)] == before
    with torch.no_grad():
        logits = network(torch.tensor([whole])).logits[0]
    logps = torch.log_softmax(logits, -1)
    at = range(len(before), len(whole))
    return sum(float(logps[i - 1, whole[i]]) for i in at), len(at)


def test_log_probs_and_rewards_are_those_of_torch(folder):
    found = scored(data={"path": "pairs.jsonl"}, beta=0.25)
    pairs = read_pairs("pairs.jsonl", config_of("pairs.jsonl")).pairs
    assert [pair.source for pair in found.pairs] == [pair.source for pair in pairs]
    assert found.reference_logps is not None and found.rewards is not None
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert len(lines) == 30
    for i in range(0, 30, 7):
        prompt = list(pairs[i].prompt)
        rewards = []
        for side, message in enumerate((pairs[i].chosen[0], pairs[i].rejected[0])):
            policy, tokens = torch_logps("./dpo", prompt, message["content"])
            reference, _ = torch_logps("./sft", prompt, message["content"])
            rewards.append(0.25 * (policy - reference))
            said = lines[i]["chosen" if side == 0 else "rejected"]
            assert said["tokens"] == found.tokens[i, side] == tokens
            assert said["logp"] == pytest.approx(policy, rel=1e-4)
            assert said["reference_logp"] == pytest.approx(reference, rel=1e-4)
            assert said["reward"] == pytest.approx(rewards[-1], abs=1e-4 * abs(policy))
        assert lines[i]["margin"] == pytest.approx(rewards[0] - rewards[1], abs=1e-3)


def test_without_a_reference_there_are_log_probs_alone():
    found = scored(data={"path": "pairs.jsonl", "split": "TEST"}, reference=None)
    assert found.rewards is None and len(found.pairs) == 10
    line = next(score_lines(found))
    assert line["logp_margin"] == pytest.approx(line["chosen"]["logp"] - line["rejected"]["logp"])
    assert "margin" not in line and set(line["chosen"]) == {"logp", "tokens"}


def test_models_in_memory(folder):
    data = {"path": "pairs.jsonl", "split": "TEST"}
    by_path = scored(data=data)
    config = ScoreConfig.model_validate(
        {"model": "m", "reference": "r", "data": data, "out": "o", "overwrite": True}
    )
    in_memory = jaxdpo.score(config, load_policy("./dpo"), load_policy("./sft"))
    np.testing.assert_array_equal(in_memory.rewards, by_path.rewards)


def test_a_benchmark_of_reward_models_by_subset(capsys):
    main(
        ["model=./dpo", "--reference", "./sft", "data=bench.jsonl", "out=bench_scores.jsonl",
         "group_by=subset"]
    )  # fmt: skip
    shown = capsys.readouterr().out
    found = scored(data={"path": "bench.jsonl"})
    [table] = tables(found, "subset")
    assert table.header[:3] == ("subset", "lines", "prefers chosen (95%)")
    rows = {row[0]: row for row in table.rows}
    assert [row[1] for row in table.rows] == ["5", "7", "12"]
    right = margins(found) > 0
    assert rows["chat"][2].startswith(f"{right[:5].mean():.3f} (")
    assert rows["all"][2].startswith(f"{right.mean():.3f} (")
    assert "safety" in shown and "bench_scores.jsonl: 12 lines" in shown
    with pytest.raises(UserError, match=r"group_by=subst: no line's metadata has it; there are su"):
        tables(found, "subst")


def test_best_of_n_by_implicit_reward(folder):
    found = scored(data={"path": "answers.jsonl"}, best="best.jsonl")
    assert found.rewards is not None
    best = [json.loads(line) for line in (folder / "best.jsonl").read_text().splitlines()]
    assert [each["id"] for each in best] == ["0", "1", "2", "3"]
    rewards = found.rewards[:, 0].reshape(4, 3)
    assert [each["sample"] for each in best] == rewards.argmax(axis=1).tolist()
    by_prompt = ranks(found).reshape(4, 3)
    np.testing.assert_array_equal(by_prompt, 1 + np.argsort(np.argsort(-rewards, axis=1), axis=1))
    [table] = tables(found, "topic")
    assert (table.title, [row[0] for row in table.rows]) == (
        "Single answers",
        ["even", "odd", "all"],
    )
    with pytest.raises(UserError, match="best reads a file of generations"):
        scored(data={"path": "pairs.jsonl"}, best="best.jsonl")


def test_single_answers_need_no_other(folder):
    line = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (folder / "single.jsonl").write_text(json.dumps({**line, "split": "TEST"}) + "\n")
    found = scored(data={"path": "single.jsonl", "single": True})
    logp, tokens = torch_logps("./dpo", line["messages"][:1], "b")
    assert found.tokens.tolist() == [[tokens, 0]]
    assert found.logps[0, 0] == pytest.approx(logp, rel=1e-4)
    assert list(ranks(found)) == [1] and np.isnan(margins(found)[0])


def by_hand(gaps: list[float], splits: str):
    """Scores with the given margins; TRAIN where `splits` has a T, else TEST."""
    pairs = tuple(
        PreferencePair(
            prompt=({"role": "user", "content": str(i)},),
            chosen=({"role": "assistant", "content": "a"},),
            rejected=({"role": "assistant", "content": "b"},),
            split="TRAIN" if split == "T" else "TEST",
        )
        for i, split in enumerate(splits)
    )
    rewards = np.stack([np.array(gaps), np.zeros(len(gaps))], axis=1)
    ones = np.ones((len(gaps), 2), np.int32)
    return Scored(pairs, (), ones, rewards, np.zeros_like(rewards), beta=1.0)


@pytest.mark.parametrize(
    ("selection", "kept", "said"),
    [
        ({"at_least": 0.0}, [0, 2, 3, 4], "3 of 4 TRAIN pairs (1 have a smaller margin, 0 a "),
        ({"at_most": 1.0}, [0, 1, 3, 4], "3 of 4 TRAIN pairs (0 have a smaller margin, 1 a "),
        ({"share": 0.5}, [2, 3, 4], "2 of 4 TRAIN pairs, those with the largest margins of 4"),
        (
            {"share": 0.5, "keep": "smallest"},
            [0, 1, 4],
            "2 of 4 TRAIN pairs, those with the smalle",
        ),
        ({"at_least": 0.0, "share": 0.3}, [2, 4], "1 of 4 TRAIN pairs (1 have a smaller margin, 0"),
    ],
)
def test_pairs_are_selected_by_their_margin(selection, kept, said):
    found = by_hand([0.5, -1.0, 2.0, 1.0, -9.0], "TTTTE")
    chosen, counts = select_pairs(found, Selection(**selection))
    assert [int(pair.prompt[0]["content"]) for pair in chosen] == kept
    assert counts.startswith(said) and counts.endswith("and all 1 TEST pairs")
    # The largest margin is first; equal ones share the better place.
    assert ranks(found).tolist() == [3, 4, 1, 2, 5]
    assert ranks(by_hand([1.0, 1.0, 0.0], "TTT")).tolist() == [1, 1, 3]


def test_nothing_selected_is_an_error():
    with pytest.raises(UserError, match=r"0 of 2 TRAIN pairs.*widen the bounds"):
        select_pairs(by_hand([0.0, 1.0], "TT"), Selection(at_least=5))


def test_selected_pairs_train(folder):
    main(
        ["model=./dpo", "reference=./sft", "data=pairs.jsonl", "out=s.jsonl", "write=hard.jsonl",
         "data.select.share=0.5", "data.select.keep=smallest"]
    )  # fmt: skip
    again = read_pairs("hard.jsonl", config_of("hard.jsonl")).pairs
    assert sum(pair.split == "TRAIN" for pair in again) == 10
    assert sum(pair.split == "TEST" for pair in again) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["write=w.jsonl"], "write would be ignored without data.select; set both"),
        (["data.select.share=0.5"], "data.select would be ignored without write"),
        (["best=b.jsonl"], "best reads implicit rewards; set reference="),
        (["data.select.at_least=2", "data.select.at_most=1"], "no margin lies between"),
        (["data.select.at_last=2"], "data.select.at_last: unknown key; did you mean 'at_least'"),
        (["data.split=TRIAN"], "did you mean 'TRAIN'"),
    ],
)
def test_mistakes(settings, message):
    given = ["model=./dpo", "data=pairs.jsonl", "out=o.jsonl", *settings]
    with pytest.raises(UserError) as refused:
        load_settings(ScoreConfig, None, given)
    assert message in str(refused.value)


def test_files_are_not_replaced_unasked(folder):
    (folder / "kept.jsonl").write_text("mine\n")
    given = ["model=./dpo", "data=pairs.jsonl", "out=kept.jsonl"]
    with pytest.raises(UserError, match=r"kept.jsonl: is there already; set overwrite=true"):
        main(given)
    assert (folder / "kept.jsonl").read_text() == "mine\n"
    main([*given, "--overwrite"])
    assert len((folder / "kept.jsonl").read_text().splitlines()) == 30
