"""The pairs that are likeliest to displace their own chosen answers, named before training."""

import json
import random
import re

import numpy as np
import pytest
from transformers import LlamaForCausalLM

from jaxdpo.data.config import DataConfig
from jaxdpo.data.packing.plan import BatchConfig
from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.errors import UserError
from jaxdpo.inspect import main
from jaxdpo.runs import displacement
from jaxdpo.runs.displacement import displacing_pairs_of_data
from tests.folders import sentence, write_model
from tests.torch_ches import ches_by_torch

COUNT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model, and pairs of random answers of different lengths."""
    folder = tmp_path_factory.mktemp("displacement")
    write_model(folder / "model")
    rng = random.Random(0)
    lines = []
    for number in range(1, COUNT + 1):
        lines.append(
            {
                "prompt": f"{number} {sentence(rng, 5)}",
                "chosen": f"yes {sentence(rng, rng.randint(3, 20))}",
                "rejected": f"no {sentence(rng, rng.randint(3, 20))}",
                "split": "TRAIN",
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "pairs.jsonl").write_text(text)
    return folder


def data_of(folder) -> DataConfig:
    path, cache = str(folder / "pairs.jsonl"), str(folder / "cache")
    return DataConfig(path=path, cache_dir=cache, test_fraction=0)


def lines_of(found):
    return [int(pair.source.rpartition(":")[2]) for pair in found.pairs]


@pytest.fixture(scope="module")
def by_torch(folder):
    """Each line's score by means, in float64."""
    model = LlamaForCausalLM.from_pretrained(folder / "model").double()
    chat = load_chat(str(folder / "model"), None)
    train = load_pairs(data_of(folder), chat).splits["TRAIN"]
    scores = {}
    for index in range(len(train)):
        line = int(train.source(index).rpartition(":")[2])
        scores[line] = ches_by_torch(model, train[index])[1]
    return scores


def test_the_pairs_of_the_highest_scores_are_named(folder, by_torch):
    found = displacing_pairs_of_data(str(folder / "model"), data_of(folder), BatchConfig(), 3)
    expected = sorted(by_torch, key=by_torch.__getitem__, reverse=True)[:3]
    assert lines_of(found) == expected
    scores = [pair.ches for pair in found.pairs]
    np.testing.assert_allclose(scores, [by_torch[line] for line in expected], rtol=1e-3)
    assert found.scored == COUNT
    np.testing.assert_allclose(found.median, np.median(list(by_torch.values())), rtol=1e-3)


def test_of_large_data_a_part_is_scored(folder, monkeypatch):
    monkeypatch.setattr(displacement, "_MOST_SCORED", 8)
    found = displacing_pairs_of_data(str(folder / "model"), data_of(folder), BatchConfig(), 99)
    assert found.scored == len(found.pairs) == 8
    assert {1, COUNT} <= set(lines_of(found))


def test_inspect_lists_them(folder, by_torch, capsys):
    arguments = [
        str(folder / "pairs.jsonl"),
        f"data.cache_dir={folder / 'cache'}",
        "data.test_fraction=0",
        f"model={folder / 'model'}",
        f"report={folder / 'report.html'}",
    ]
    main(arguments)
    assert "[displacement]" not in capsys.readouterr().out
    main([*arguments, "displacement=3"])
    said = " ".join(capsys.readouterr().out.split())
    listed = re.search(r"\[displacement\] 3 pairs of 40 .*? \((.*?)\): read them", said)
    assert listed is not None, said
    lines = [int(line) for line in re.findall(r"pairs\.jsonl:(\d+)", listed[1])]
    assert lines == sorted(by_torch, key=by_torch.__getitem__, reverse=True)[:3]
    assert "CHES" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["displacement=3"], "set model="),
        (["displacement=3", "model=m", "supervised=true"], "supervised examples have one answer"),
    ],
)
def test_what_it_needs_is_said(folder, arguments, said):
    with pytest.raises(UserError, match=re.escape(said)):
        main([str(folder / "pairs.jsonl"), *arguments])
