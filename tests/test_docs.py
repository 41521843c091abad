"""Everything that the documents name exists, and what they tell a user to type is read and runs."""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

import jaxdpo
from jaxdpo.cli import settings
from jaxdpo.storage.files import shipped

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for page in (ROOT / "docs").glob("*.md") if page.is_file())]
)
PATH = re.compile(r"`((?:jaxdpo|tests|configs|notebooks|docs)/[\w/.-]+\.\w+)`(?: `(\w+)`)?")
# `jaxdpo.COMMAND` stands for all of them.
MODULE = re.compile(r"python -m ((?:jaxdpo|tests)(?:\.[a-z]\w*)*)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
FENCE = re.compile(r"^```(.*)\n((?:(?!```).*\n)*)```$", re.MULTILINE)
COMMAND = re.compile(r"^(?:\.venv/bin/)?(?:jaxdpo |python -m jaxdpo\.)([a-z_0-9.]+)\b(.*)$")

CRITERIA = "criteria:\n  - {name: word_limit, limit: from_prompt}\n"
FILES = {
    "criteria.yaml": CRITERIA,
    "lora.yaml": "lora: {rank: 8}\n",
    "dpo.yaml": "model: m\ndata: d.jsonl\ntraining: {folder: runs/dpo}\n",
    "sft.yaml": "model: m\ntraining: {folder: runs/sft}\n",
    "tokens.yaml": f"ann: {'5f0c' * 8}\n",
    "x.yaml": "model: m\ntraining: {folder: runs/x}\n",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_functions_modules_and_links_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for path, name in PATH.findall(text):
        assert (ROOT / path).exists(), path
        if name:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            defined = {getattr(node, "name", None) for node in ast.walk(tree)}
            assert name in defined, f"{path} has no {name}"
    for module in MODULE.findall(text):
        assert importlib.util.find_spec(module) is not None, module
    for link in LINK.findall(text):
        assert (page.parent / link).exists(), link


def commands() -> list[tuple[str, str, list[str]]]:
    """Lists the commands of all blocks without a language: page, command and words."""
    found = []
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language:
                continue
            for line in block.replace("\\\n", " ").splitlines():
                match = COMMAND.match(line.split("&&")[-1].strip())
                if match:
                    found.append((page.name, match[1], shlex.split(match[2].partition(" #")[0])))
    return found


class Read(Exception):
    """Raised in place of what a command does once it has read its settings."""


@pytest.mark.parametrize(("page", "name", "words"), commands(), ids=lambda value: str(value)[:60])
def test_the_settings_of_every_command_are_read(page, name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, text in FILES.items():
        Path(file).write_text(text)
    shutil.copytree(ROOT / "configs", "configs")
    real, read = settings._checked, []

    def checked(model, values, where):
        config = real(model, values, where)
        # Settings within settings are read on the way, such as those in a file of criteria.
        if model.__name__ not in ("CriteriaFile",):
            read.append(config)
            raise Read
        return config

    monkeypatch.setattr(settings, "_checked", checked)
    # That the scheme of a bucket is known is checked all the same; its package is an extra.
    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda scheme: None)
    module = f"jaxdpo.{name}" + (".__main__" if name.startswith("use_cases") else "")
    main = importlib.import_module(module).main
    if name == "init":
        assert main(words) is None
        return
    with pytest.raises(Read):
        main(words)
    assert len(read) == 1


def test_the_readme_s_commands_run_on_a_user_s_own_files(tmp_path):
    """Runs them as they stand there, in a folder with a model, pairs, prompts and a criterion."""
    shutil.copytree(shipped("@quickstart/model"), tmp_path / "models/my-sft")
    with open(shipped("@quickstart/pairs.jsonl"), encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    own = [pair for pair in pairs if pair["split"] == "TRAIN"][:60]
    write(tmp_path / "pairs.jsonl", [{k: v for k, v in p.items() if k != "split"} for p in own])
    asked = [{"messages": p["messages"][:-1]} for p in pairs if p["split"] == "TEST"][:10]
    write(tmp_path / "prompts.jsonl", asked)
    (tmp_path / "criteria.yaml").write_text(CRITERIA)
    environment = {**os.environ, "JAXDPO_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    typed = [words for page, name, words in commands() if page == "README.md"]
    names = [name for page, name, _ in commands() if page == "README.md"]
    assert names == ["train", "inspect", "train", "evaluate"]
    for name, words in list(zip(names, typed, strict=True))[1:]:
        done = subprocess.run(
            [sys.executable, "-m", "jaxdpo", name, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/first/model/model.safetensors").stat().st_size > 1_000_000
    results = json.loads((tmp_path / "evaluation/results.json").read_text())
    assert set(results["models"]) == {"before", "after"}


def write(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_version_of_the_citation():
    assert f"version: {jaxdpo.__version__}\n" in (ROOT / "CITATION.cff").read_text()
