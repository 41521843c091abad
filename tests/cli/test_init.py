"""The settings file to begin with says what `jaxdpo train` would do without it."""

import re
import sys

import pytest
import yaml

from jaxdpo.cli.command import run_command
from jaxdpo.cli.fields import leaves
from jaxdpo.config import RunConfig, flat, load_config
from jaxdpo.errors import UserError
from jaxdpo.init import main

GIVEN = ["model=models/sft", "data=pairs.jsonl", "training.folder=runs/first"]


@pytest.fixture
def init(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder; returns its status, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["init", *words])
        return run_command(main), *capsys.readouterr()

    return run


def test_what_is_given_is_set_and_nothing_else(init, tmp_path):
    status, out, _ = init("dpo.yaml", *GIVEN, "--loss.beta", "0.3", "lora.rank=8")
    assert status == 0 and "jaxdpo train dpo.yaml" in out
    assert yaml.safe_load((tmp_path / "dpo.yaml").read_text()) == {
        "model": {"path": "models/sft"},
        "data": {"path": "pairs.jsonl"},
        "training": {"folder": "runs/first"},
        "loss": {"beta": 0.3},
        "lora": {"rank": 8},
    }
    written = load_config("dpo.yaml")
    assert written == load_config(None, [*GIVEN, "loss.beta=0.3", "lora.rank=8"])


def test_every_field_stands_there_with_its_default(init, tmp_path):
    """With every mark of a comment before a setting removed, the file says the defaults."""
    init("dpo.yaml", *GIVEN, "lora.rank=16")
    text = (tmp_path / "dpo.yaml").read_text()
    settings = re.sub(r"^( *)# ([a-z_0-9]+:( .*)?)$", r"\1\2", text, flags=re.MULTILINE)
    # Lines of prose that happen to have the form of a setting: none but sections' descriptions.
    names = {key.rpartition(".")[2] for key, _ in leaves(RunConfig)}
    names |= {*RunConfig.model_fields, "watch", "stop"}
    settings = re.sub(
        r"^ *([a-z_0-9]+):.*$",
        lambda line: line[0] if line[1] in names else "",
        settings,
        flags=re.MULTILINE,
    )
    (tmp_path / "all.yaml").write_text(settings)
    read = yaml.safe_load(settings)
    assert set(read) == set(RunConfig.model_fields)
    # `stop` is null by default, and a section of its own once its fields are set.
    assert read["training"].pop("stop") == {"broken": 0.5, "worse": None}
    expected = flat(load_config(None, [*GIVEN, "lora.rank=16"]))
    assert flat(load_config(None, [*GIVEN, *_overrides(read)])) == expected


def _overrides(read: dict, prefix: str = "") -> list[str]:
    found = []
    for name, value in read.items():
        if isinstance(value, dict) and value:
            found += _overrides(value, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}={yaml.safe_dump(value, default_flow_style=True)}")
    return [each.removesuffix("\n").removesuffix("\n...") for each in found]


def test_what_is_required_is_named_when_it_is_left_blank(init, tmp_path):
    init("dpo.yaml", "model=models/sft")
    with pytest.raises(UserError, match=r"data\.path: must be given") as refused:
        load_config("dpo.yaml")
    assert "training.folder: must be given" in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss.beta=1"], "which file?"),
        (["a.yaml", "b.yaml"], "one configuration file at a time"),
        (["a.yaml", "loss.betta=1"], "did you mean 'beta'?"),
        (["a.yaml", "loss.beta=-1"], "loss.beta: Input should be greater than 0; it is -1"),
    ],
)
def test_mistakes_write_nothing(init, tmp_path, words, said):
    status, _, err = init(*words)
    assert status == 2 and said in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(init, tmp_path):
    (tmp_path / "dpo.yaml").write_text("mine")
    assert init("dpo.yaml")[0] == 2
    assert (tmp_path / "dpo.yaml").read_text() == "mine"
