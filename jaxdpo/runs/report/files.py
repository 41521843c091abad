"""Reads a run folder for its page, whether the run is finished or under way."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdpo.cli.settings import read_yaml
from jaxdpo.config import RunConfig
from jaxdpo.errors import UserError
from jaxdpo.runs.folder import ANSWERS_FILE, DATA_FILE, FACTS_FILE, SUMMARY_FILE, TEST_PAIRS_FILE
from jaxdpo.storage.noted import damaged, read_noted, read_noted_json
from jaxdpo.training.health import Watch
from jaxdpo.training.remedies import Remedies
from jaxdpo.training.writers import read_metrics

_CONFIG = "config.yaml"


@dataclass(frozen=True)
class RunFiles:
    """The files of a run.

    Attributes:
      path: The folder.
      config: The run's configuration.
      records: The records of metrics.jsonl.
      facts: run.json; empty for a run of an earlier version.
      data: data.json.
      answers: The lines of answers.jsonl.
      test_pairs: test_pairs.json, or None.
      summary: summary.json, or None before the run is finished.
      evaluations: Folder ↦ results.json of each evaluation in the run folder.
      sweep: sweep.json of the sweep that the run is one setting of, or None.
    """

    path: Path
    config: RunConfig
    records: list[dict[str, Any]]
    facts: dict[str, Any]
    data: dict[str, Any]
    answers: list[dict[str, Any]]
    test_pairs: dict[str, Any] | None
    summary: dict[str, Any] | None
    evaluations: dict[str, dict[str, Any]]
    sweep: list[dict[str, Any]] | None

    def split(self, name: str) -> list[dict[str, Any]]:
        """Returns the records of TRAIN or TEST, in the order of the steps."""
        return [record for record in self.records if record["split"] == name]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run, as far as its files know them."""
        # A run of an earlier version has no run.json, and before its end no summary.
        last = max((record["step"] for record in self.records), default=0)
        return self.facts.get("num_steps") or (self.summary or {}).get("steps") or last

    def warnings(self) -> list[str]:
        """Returns what the health checks say of the run's metrics."""
        config = self.config
        remedies = Remedies(config.loss, config.optimizer, config.lora is not None, self.num_steps)
        watch, said = Watch(remedies), []
        # A function of the metrics alone, so the page of a run says what the run said.
        for record in self.records:
            take = watch.test if record["split"] == "TEST" else watch.train
            said += take(record["step"], record)
        return said


def is_run(path: Path) -> bool:
    """Tells whether a folder holds a run's configuration and metrics."""
    return (path / _CONFIG).is_file() and (path / "inputs.json").is_file()


def read_run(path: Path) -> RunFiles:
    """Reads a run folder.

    Raises:
      UserError: If it is none, or a file of it cannot be read.
    """
    if not is_run(path):
        raise UserError(
            f"{path}: is no run folder; it holds no config.yaml and inputs.json of a run"
        )
    try:
        config = RunConfig.model_validate(read_yaml(path / _CONFIG))
    except ValueError as error:
        raise UserError(f"{path / _CONFIG}: cannot be read by this version: {error}") from None
    # A setting of a sweep lies in the sweep's folder, beside sweep.json.
    sweep = _json(path / "sweep.json") or _json(path.parent / "sweep.json")
    return RunFiles(
        path=path,
        config=config,
        records=read_metrics(path),
        facts=_json(path / FACTS_FILE) or {},
        data=_json(path / DATA_FILE) or {},
        answers=_lines(path / ANSWERS_FILE),
        test_pairs=_json(path / TEST_PAIRS_FILE),
        summary=_json(path / SUMMARY_FILE),
        evaluations={file.parent.name: _json(file) for file in sorted(path.glob("*/results.json"))},
        sweep=sweep,
    )


def _json(path: Path) -> Any:
    return read_noted_json(path) if path.is_file() else None


def _lines(path: Path) -> list[dict[str, Any]]:
    text = read_noted(path) if path.is_file() else None
    try:
        return [json.loads(line) for line in (text or "").split("\n") if line]
    except ValueError as error:
        raise damaged(path, f"no JSON: {error}") from None
