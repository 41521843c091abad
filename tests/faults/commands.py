"""The commands that are tried, and what they are called with."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jaxdpo

PACKAGE = Path(jaxdpo.__file__).parent


@dataclass(frozen=True)
class Tried:
    """A command that writes everything below one folder.

    Attributes:
      module: What `python -m` runs.
      words: The folder of inputs, and the folder to write to ↦ its arguments.
    """

    module: str
    words: Callable[[Path, Path], list[str]]


def write_inputs(folder: Path) -> Path:
    """Writes a few pairs, prompts, feedback and criteria into a folder; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (PACKAGE / "quickstart/pairs.jsonl").read_text(encoding="utf-8").splitlines()
    train = [line for line in lines if '"split": "TRAIN"' in line][:16]
    test = [line for line in lines if '"split": "TEST"' in line][:4]
    (folder / "pairs.jsonl").write_text("\n".join([*train, *test]) + "\n")
    records = [json.loads(line) for line in [*train[:4], *test]]
    prompts = [{"messages": record["messages"][:1]} for record in records]
    _write_lines(folder / "prompts.jsonl", prompts)
    edits = [
        {
            "messages": record["messages"][:1],
            "draft": record["rejected_message"]["content"],
            "saved": record["messages"][1]["content"],
        }
        for record in records
    ]
    _write_lines(folder / "edits.jsonl", edits)
    (folder / "criteria.yaml").write_text(
        "criteria:\n  - {name: contains, text: e}\n  - {name: word_limit, limit: 4}\n"
    )
    return folder


def _write_lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _train(inputs: Path, out: Path) -> list[str]:
    return [
        "@configs/quickstart.yaml",
        f"data.path={inputs}/pairs.jsonl",
        f"data.cache_dir={out}/cache",
        f"training.folder={out}/run",
        "training.max_steps=2",
        "training.evaluate_every=1",
        "training.completions=2",
        "training.watch.prompts=0",
        "sampling.max_new_tokens=4",
        "checkpoint.every=1",
        "batch.size=4",
    ]


def _prefer(inputs: Path, out: Path) -> list[str]:
    return [
        "model=@quickstart/model",
        f"data={inputs}/prompts.jsonl",
        f"criteria={inputs}/criteria.yaml",
        f"folder={out}/pairs",
        "samples=2",
        "sampling.max_new_tokens=6",
    ]


def _sample(inputs: Path, out: Path) -> list[str]:
    return [
        "model=@quickstart/model",
        f"data={inputs}/prompts.jsonl",
        f"out={out}/answers.jsonl",
        "sampling.max_new_tokens=6",
    ]


def _evaluate(inputs: Path, out: Path) -> list[str]:
    return [
        "a=@quickstart/model",
        "b=@quickstart/model",
        f"data={inputs}/prompts.jsonl",
        f"criteria={inputs}/criteria.yaml",
        f"out={out}/evaluation",
        "sampling.max_new_tokens=6",
    ]


def _score(inputs: Path, out: Path) -> list[str]:
    return [
        "model=@quickstart/model",
        f"data={inputs}/pairs.jsonl",
        f"data.cache_dir={out}/cache",
        f"out={out}/scores.jsonl",
    ]


COMMANDS = {
    "train": Tried("jaxdpo.train", _train),
    "convert": Tried(
        "jaxdpo.convert", lambda _, out: ["source=@quickstart/model", f"target={out}/model"]
    ),
    "convert_gguf": Tried(
        "jaxdpo.convert",
        lambda _, out: ["source=@quickstart/model", f"target={out}/m.gguf", "format=gguf"],
    ),
    "convert_orbax": Tried(
        "jaxdpo.convert",
        lambda _, out: ["source=@quickstart/model", f"target={out}/orbax", "format=orbax"],
    ),
    "collect": Tried(
        "jaxdpo.collect",
        lambda inputs, out: ["user_edits", f"{inputs}/edits.jsonl", "-o", f"{out}/pairs.jsonl"],
    ),
    "score": Tried("jaxdpo.score", _score),
    "inspect": Tried(
        "jaxdpo.inspect",
        lambda inputs, out: [
            f"{inputs}/pairs.jsonl",
            "model=@quickstart/model",
            f"data.cache_dir={out}/cache",
            f"report={out}/inspect.html",
            f"write={out}/clean.jsonl",
        ],
    ),
    "prefer": Tried("jaxdpo.prefer", _prefer),
    "sample": Tried("jaxdpo.sample", _sample),
    "evaluate": Tried("jaxdpo.evaluate", _evaluate),
}
