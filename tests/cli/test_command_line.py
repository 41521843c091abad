"""Every command as its user types it: usage, help, versions, mistakes, missing files, Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

import jaxdpo
from jaxdpo.__main__ import COMMANDS, console
from jaxdpo.cli.command import run_command
from jaxdpo.cli.fields import leaves
from jaxdpo.cli.help import fields_help
from jaxdpo.config import RunConfig
from jaxdpo.rounds.compare import EvaluateConfig
from jaxdpo.rounds.evaluate import AgreementConfig

ROOT = Path(jaxdpo.__file__).parent.parent


@dataclass(frozen=True)
class Line:
    """A command line that is complete but for its files, and what may go wrong with it.

    Attributes:
      fields: What the command cannot do without.
      missing: What is said of the first file that is not there.
      typo: A misspelt field, and the one that was meant.
      broken: A field whose value is no YAML, and is not a text's.
    """

    fields: dict[str, str]
    missing: str
    typo: tuple[str, str]
    broken: str


LINES = {
    "train": Line(
        {"model": "no_model", "data": "no.jsonl", "training.folder": "run"},
        "no_model: no such folder",
        ("training.epoch", "epochs"),
        "batch.size",
    ),
    "plan": Line(
        {"model": "no_model", "pairs": "10"},
        "no_model: no such folder",
        ("topologie", "topology"),
        "completion",
    ),
    "inspect": Line(
        {"data": "no.jsonl"}, "no.jsonl: no such file", ("reports", "report"), "batch.size"
    ),
    "collect": Line(
        {"source": "user_edits", "data": "no.jsonl", "out": "pairs.jsonl"},
        "no.jsonl: cannot be read",
        ("magin", "margin"),
        "test_fraction",
    ),
    "studio": Line(
        {"data": "no.jsonl", "folder": "feedback", "port": "0"},
        "no.jsonl: no such file",
        ("overlp", "overlap"),
        "answers",
    ),
    "prefer": Line(
        {"model": "no_model", "data": "no.jsonl", "criteria": "json", "folder": "pairs"},
        "no.jsonl: no such file",
        ("sample", "samples"),
        "samples",
    ),
    "iterate": Line(
        {"model": "no_model", "data": "no.jsonl", "criteria": "json", "folder": "rounds"},
        "no.jsonl: no such file",
        ("round", "rounds"),
        "rounds",
    ),
    "sample": Line(
        {"model": "no_model", "data": "no.jsonl", "out": "answers.jsonl"},
        "no.jsonl: no such file",
        ("sampling.tempreture", "temperature"),
        "samples",
    ),
    "evaluate": Line(
        {"models.sft": "no_model", "data": "no.jsonl", "criteria": "json", "out": "evaluation"},
        "no.jsonl: no such file",
        ("critera", "criteria"),
        "data.limit",
    ),
    "score": Line(
        {"model": "no_model", "data": "no.jsonl", "out": "scores.jsonl"},
        "no_model: no such folder",
        ("data.select.at_last", "at_least"),
        "beta",
    ),
    "convert": Line(
        {"source": "no_model", "target": "out"},
        "no_model: no such folder",
        ("shard_bg", "shard_gb"),
        "shard_gb",
    ),
    "push": Line(
        {"folder": "no_model", "repo": "org/name"},
        "no_model: holds no model",
        ("privat", "private"),
        "private",
    ),
    "report": Line(
        {"folders": "[no_run]"}, "no_run: is no run folder", ("folder", "folders"), "folders"
    ),
    "serve": Line(
        {"model": "no_model", "port": "0"},
        "no_model: no such folder",
        ("limits.wating", "waiting"),
        "batch_size",
    ),
    "use_cases": Line(
        {"name": "wrod_limit"}, "wrod_limit: there is no such use case", ("seed", "seeds"), "tests"
    ),
}


def test_every_command_is_tried():
    # `init` and `cache` read no file, so that none can be missing: they have tests of their own.
    assert {*LINES, "init", "cache"} == set(COMMANDS)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs a command in this process; returns its status, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *words: str) -> tuple[int, str, str]:
        module = f"jaxdpo.{name}" + (".__main__" if name == "use_cases" else "")
        monkeypatch.setattr(sys, "argv", [name, *words])
        status = run_command(import_module(module).main)
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", LINES)
class TestEveryCommand:
    def test_without_arguments_it_shows_its_usage(self, command, name):
        status, out, err = command(name)
        assert (status, out) == (2, "")
        assert err.startswith(f"usage: python -m jaxdpo.{name} ")
        assert "--help shows every field" in err

    def test_version(self, command, name):
        assert command(name, "--version") == (0, f"jaxdpo {jaxdpo.__version__}\n", "")

    @pytest.mark.parametrize("width", [60, 132])
    def test_help(self, command, name, width, monkeypatch):
        monkeypatch.setenv("COLUMNS", str(width))
        status, out, err = command(name, *_words(LINES[name], "="), "--help")
        assert (status, err) == (0, "")
        assert out.startswith(f"usage: python -m jaxdpo.{name} ")
        for key in LINES[name].fields:
            section = key.replace("models.sft", "models")
            assert re.search(rf"^  {section}(\.path)?=", out, re.MULTILINE), key
        # A default or a choice that holds no space cannot be broken.
        assert all(len(line) <= width for line in out.splitlines() if " " in line.strip()[:width])

    def test_an_unknown_key(self, command, name):
        # To evaluate, any name without a section may be a model's.
        key, where = ("data.zzzqqq", "data") if name == "evaluate" else ("zzzqqq", "the config")
        status, _, err = command(name, *_words(LINES[name], "="), f"{key}=1")
        assert status == 2
        assert err.startswith(f"error: {key}: unknown key; {where}")

    @pytest.mark.parametrize("spelling", ["=", "--", " "])
    def test_the_nearest_key(self, command, name, spelling):
        wrong, right = LINES[name].typo
        typo = Line({**LINES[name].fields, wrong: "1"}, "", ("", ""), "")
        status, _, err = command(name, *_words(typo, spelling))
        assert status == 2
        assert f"{wrong}: unknown key; did you mean '{right}'?" in err
        assert "Traceback" not in err

    def test_a_value_that_is_no_yaml(self, command, name):
        key = LINES[name].broken
        status, _, err = command(name, *_words(LINES[name], "="), f"{key}=[1")
        assert status == 2
        assert f"error: {key}: " in err and "is not valid YAML, so it was taken as text" in err

    @pytest.mark.parametrize("spelling", ["=", "--", " "])
    def test_a_missing_file(self, command, name, spelling):
        """The same in every spelling: each field has reached its place."""
        status, _, err = command(name, *_words(LINES[name], spelling))
        assert status == 2
        assert err.startswith(f"error: {LINES[name].missing}")
        assert err.count("\n") == 1

    def test_a_missing_configuration_file(self, command, name):
        status, _, err = command(name, "no.yaml", *_words(LINES[name], "="))
        assert (status, err) == (2, "error: no.yaml: there is no such configuration file\n")

    @pytest.mark.parametrize("words", [["--"], ["-x", "1"], ["--out"]])
    def test_misuse(self, command, name, words):
        status, _, err = command(name, *words)
        assert status == 2
        assert err.startswith("error: ") and err.count("\n") == 1


def _words(line: Line, spelling: str) -> list[str]:
    """Returns the words of a line as `key=value`, `--key=value` or `--key value`."""
    pairs = line.fields.items()
    if spelling == " ":
        return [word for key, value in pairs for word in (f"--{key}", value)]
    return [f"{'--' if spelling == '--' else ''}{key}={value}" for key, value in pairs]


def test_help_shows_type_choices_default_and_a_line_of_every_field():
    shown = fields_help(RunConfig)
    for key, field in leaves(RunConfig):
        assert f"  {key}=" in shown
        assert field.description and field.description.split()[0] in shown
    assert "  loss.beta=0.1  (number > 0)\n" in shown
    assert "  loss.label_smoothing=0.0  (number ≥ 0, < 0.5)\n" in shown
    assert "  model.remat=auto  (auto | none | dots | full)\n" in shown
    assert "  model.path=…  (text; required)\n" in shown
    assert "  lora.rank=" in shown and "adapters; null: all parameters are trained" in shown


def test_help_shows_criteria_and_their_fields():
    shown = fields_help(EvaluateConfig)
    for name in ("word_limit", "regex", "contains", "json", "equals", "extracted", "similarity"):
        assert re.search(rf"name=…  \(.*\b{name}\b", shown)
    for field in ("limit=from_prompt", "pattern=…", "function=…", "judge.instructions=…"):
        assert f" {field}  (" in shown
    assert "alignment=…  (text; required)" in fields_help(AgreementConfig)


def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def test_all_commands_are_listed_by_a_line_each():
    listed = run("-m", "jaxdpo")
    assert (listed.returncode, listed.stderr) == (0, "")
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w.{{20,}}$", listed.stdout, re.MULTILINE)
    assert run("-m", "jaxdpo", "--help").stdout == listed.stdout
    assert run("-m", "jaxdpo", "--version").stdout == f"jaxdpo {jaxdpo.__version__}\n"


def test_a_command_that_there_is_not():
    refused = run("-m", "jaxdpo", "trian", "x=1")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: trian: there is no such command; did you mean 'train'")


def test_the_console_script_runs_commands(tmp_path, monkeypatch, capsys):
    """Runs what `pyproject.toml` installs as `jaxdpo`."""
    import tomllib

    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["jaxdpo"]
    assert target == f"{console.__module__}:{console.__name__}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["jaxdpo", "convert", "--source", "nowhere", "target=t"])
    assert console() == 2
    assert capsys.readouterr().err.startswith("error: nowhere: no such folder")


def test_the_shipped_model_needs_no_quotes(tmp_path):
    done = run(
        "-m", "jaxdpo", "convert", "--source", "@quickstart/model", f"target={tmp_path / 'm'}",
        "--check",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "arrays read back equal" in done.stdout


def test_usage_and_versions_wait_for_no_heavy_import():
    for words in (["train"], ["plan", "--version"], []):
        timed = run("-X", "importtime", "-m", "jaxdpo", *words)
        assert not re.search(r"\| +(jax|pydantic|numpy|transformers)$", timed.stderr, re.MULTILINE)


@pytest.mark.parametrize("module", ["jaxdpo.cli.arguments", "numpy", "jax._src.core", "optax"])
def test_ctrl_c_while_importing_is_one_line(module):
    """An interrupt is sent as soon as a module is imported, those after it being under way."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "jaxdpo.train", "configs/quickstart.yaml"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said: list[str] = []
    sent = False
    for line in process.stderr:
        if line.startswith("import time:"):
            if not sent and line.split("|")[-1].strip() == module:
                process.send_signal(signal.SIGINT)
                sent = True
        else:
            said.append(line)
    assert process.wait(timeout=60) == 130
    assert sent and said == ["interrupted\n"]


def test_ctrl_c_while_running_is_one_line(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxdpo.train", "configs/quickstart.yaml",
         f"training.folder={tmp_path / 'run'}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "steps of" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "interrupted; run the same command again to continue\n"
