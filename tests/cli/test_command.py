"""Mistakes on the command line: one message that names the remedy, status 2, no traceback."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxdpo.cli.command import run_command
from jaxdpo.train import main
from tests.folders import write_model, write_pairs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 12, test=2)
    return folder


def edit_lines(path: Path, edit: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(f"{line}\n" for line in edit(path.read_text().splitlines())))


def blank_answer(lines: list[str]) -> list[str]:
    broken = json.loads(lines[4])
    broken["rejected_message"]["content"] = " "
    return [*lines[:4], json.dumps(broken), *lines[5:]]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong with files or settings, and what must be said of it."""

    message: str
    spoil: Callable[[Path, Path], object] = lambda model, data: None
    settings: tuple[str, ...] = ()


MISTAKES = {
    "no data file": Mistake("pairs.jsonl: no such file", lambda model, data: data.unlink()),
    "empty data file": Mistake(
        "pairs.jsonl: is empty; write one pair a line", lambda model, data: data.write_text("")
    ),
    "no TRAIN rows": Mistake(
        "none of its 2 pairs are in the TRAIN split",
        lambda model, data: edit_lines(data, lambda lines: lines[:2]),
    ),
    "bad line": Mistake(
        "pairs.jsonl:5: rejected_message.content",
        lambda model, data: edit_lines(data, blank_answer),
    ),
    "no model": Mistake("no such folder", lambda model, data: shutil.rmtree(model)),
    "no weights": Mistake(
        "holds no weights", lambda model, data: (model / "model.safetensors").unlink()
    ),
    "no config.json": Mistake("config.json", lambda model, data: (model / "config.json").unlink()),
    "no chat template": Mistake(
        "the tokenizer has no chat template; name a Jinja file with data.chat_template",
        lambda model, data: (model / "chat_template.jinja").unlink(),
    ),
    "weights cut off": Mistake(
        "model.safetensors: damaged or cut off",
        lambda model, data: cut(model / "model.safetensors"),
    ),
    "unwritable run folder": Mistake(
        "training.folder pairs.jsonl/run: cannot be written",
        settings=("training.folder=pairs.jsonl/run",),
    ),
    "unknown key": Mistake(
        "loss.bta: unknown key; did you mean 'beta'?", settings=("loss.bta=0.1",)
    ),
    "batch too large": Mistake(
        "batch.size is 64, but there are only 10 TRAIN pairs", settings=("batch.size=64",)
    ),
    "mesh too large": Mistake(
        "does not make up the 8 devices found", settings=("mesh.data=3", "mesh.fsdp=3")
    ),
    "adapter off without an adapter": Mistake(
        "reference.kind is adapter_off, but there is no adapter",
        settings=("reference.kind=adapter_off",),
    ),
    "frozen reference under LoRA": Mistake(
        "under LoRA the base model is frozen; set reference.kind=adapter_off",
        settings=("reference.kind=frozen", "lora.rank=4"),
    ),
    "LoRA on nothing": Mistake(
        "lora.targets: 'query' is no linear map of this model", settings=("lora.targets=[query]",)
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_message(inputs, tmp_path, monkeypatch, capsys, what):
    mistake = MISTAKES[what]
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    mistake.spoil(tmp_path / "model", tmp_path / "pairs.jsonl")
    monkeypatch.chdir(tmp_path)
    right = ["model.path=./model", "data.path=pairs.jsonl", "data.cache_dir=cache"]
    right += ["training.folder=run", "batch.size=4"]
    monkeypatch.setattr(sys, "argv", ["train", *right, *mistake.settings])
    assert run_command(main) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert mistake.message in message
    assert "Traceback" not in message
    assert not Path("run/checkpoints").exists() and not Path("run/model").exists()


def test_help_names_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    assert run_command(main) == 0
    shown = capsys.readouterr().out
    assert "usage: python -m jaxdpo.train" in shown
    assert "loss.beta=0.1" in shown
