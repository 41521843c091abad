"""Everything that the documents name exists, and what they tell a user to type is read and runs."""

import ast
import glob
import importlib
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
ANCHOR = re.compile(r"\]\((?!https?:)([^)#\s]*\.md|)#([^)\s]+)\)")
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


def headings(text: str) -> set[str]:
    """Returns the anchors that GitHub and MyST give the headings of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"^#{1,4} (.+)$", prose, re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", each)) for each in found]
    return {each.strip().lower().replace(" ", "-") for each in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_anchors_of_links_are_headings(page: Path):
    for link, anchor in ANCHOR.findall(page.read_text(encoding="utf-8")):
        target = page.parent / link if link else page
        assert anchor in headings(target.read_text(encoding="utf-8")), f"{link}#{anchor}"


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


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The folder of a user with a model, pairs, prompts and a criterion, after the README."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(shipped("@quickstart/model"), folder / "models/my-sft")
    with open(shipped("@quickstart/pairs.jsonl"), encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    own = [pair for pair in pairs if pair["split"] == "TRAIN"][:60]
    write(folder / "pairs.jsonl", [{k: v for k, v in p.items() if k != "split"} for p in own])
    asked = [{"messages": p["messages"][:-1]} for p in pairs if p["split"] == "TEST"][:10]
    write(folder / "prompts.jsonl", asked)
    (folder / "criteria.yaml").write_text(CRITERIA)
    judged = [{**asked[0], "judgement": "PASS"}, {**asked[1], "judgement": "FAIL"}]
    for line, answer in zip(judged, ("Two.", "I do not know that, sorry."), strict=True):
        line["messages"] = [*line["messages"], {"role": "assistant", "content": answer}]
    write(folder / "judged.jsonl", judged)
    (folder / "elsewhere").mkdir()
    draft = {"messages": asked[0]["messages"], "draft": "It is two.", "saved": "Two."}
    write(folder / "elsewhere/drafts.jsonl", [draft])
    environment = {**os.environ, "JAXDPO_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    typed = [words for page, name, words in commands() if page == "README.md"]
    names = [name for page, name, _ in commands() if page == "README.md"]
    assert names == ["train", "inspect", "train", "evaluate"]
    for name, words in list(zip(names, typed, strict=True))[1:]:
        done = subprocess.run(
            [sys.executable, "-m", "jaxdpo", name, *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    return folder


def test_the_readme_s_commands_run_on_a_user_s_own_files(home):
    assert (home / "runs/first/model/model.safetensors").stat().st_size > 1_000_000
    results = json.loads((home / "evaluation/results.json").read_text())
    assert set(results["models"]) == {"before", "after"}


# Commands that are run as they stand, after the README's and in their folder: how each begins, and
# a file that it writes.
RUN = {
    "inspect pairs.jsonl model=models/my-sft write=clean.jsonl": "clean.jsonl",
    "evaluate alignment=judged.jsonl": None,
    "collect user_edits drafts.jsonl": "elsewhere/pairs.jsonl",
    "report runs/first": "runs/first/report.html",
    "report runs/*": "all.html",
    "convert source=models/my-sft target=orbax": "orbax/config.json",
    "convert source=runs/first target=model.gguf": "model.gguf",
    "cache list": None,
    "cache prune": None,
    "cache verify": None,
    "cache clear": None,
}
# The others: how each begins, and why it is not run here. Their settings are read above.
NOT_RUN = {
    "train": "trains for minutes; the README's one is run, and tests/runs train with such settings",
    "iterate": "trains for minutes: tests/rounds/test_iterate.py",
    "prefer": "samples for minutes: tests/rounds/test_iterate.py",
    "evaluate": "samples for minutes; the README's one is run",
    "sample": "samples for minutes, or asks a server: tests/test_evaluate.py",
    "score": "reads a benchmark that is not here: tests/runs/test_score_pairs.py",
    "inspect": "the README's is run",
    "collect": "reads exports of tools that are not here: tests/feedback",
    "convert": "other formats of the same command: tests/test_convert.py, tests/hub/gguf",
    "plan": "needs the compiler of another machine: tests/planning/test_other_machines.py",
    "push": "uploads: tests/hub/test_push.py",
    "serve": "runs until it is stopped: tests/serving",
    "studio": "runs until it is stopped: tests/annotation",
    "use_cases": "trains for minutes: tests/use_cases",
    "use_cases.smollm2": "trains for hours: tests/use_cases/test_smollm2.py",
}


def begins(words: str) -> str | None:
    return next((one for one in RUN if words.startswith(one)), None)


def test_every_command_is_run_or_named_with_a_reason():
    lines = [" ".join([name, *words]) for _, name, words in commands()]
    # Each is still documented, so that no list outlives what it lists.
    assert {begins(line) for line in lines} - {None} == {*RUN}
    rest = {line.split()[0] for line in lines if begins(line) is None}
    assert rest == {*NOT_RUN}
    for reason in NOT_RUN.values():
        for path in re.findall(r"tests/[\w/.]+", reason):
            assert (ROOT / path.rstrip(".")).exists(), path


@pytest.mark.parametrize("line", RUN)
def test_a_documented_command_runs_as_it_stands(home, line, monkeypatch):
    found = [(n, w) for _, n, w in commands() if " ".join([n, *w]).startswith(line)]
    monkeypatch.setenv("JAXDPO_CACHE", str(home / "cache"))
    monkeypatch.chdir(home / "elsewhere" if "drafts" in line else home)
    name, words = found[0]
    # As a shell hands it on.
    typed = [each for word in words for each in (sorted(glob.glob(word)) or [word])]
    importlib.import_module(f"jaxdpo.{name}").main(typed)
    written = RUN[line]
    assert written is None or (home / written).stat().st_size


def write(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_version_of_the_citation():
    assert f"version: {jaxdpo.__version__}\n" in (ROOT / "CITATION.cff").read_text()
