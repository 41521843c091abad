"""One seed of one use case: its folder, its sizes and how long its stages took."""

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdpo.config import RunConfig, load_config
from jaxdpo.data.pairs import Message
from jaxdpo.quickstart.task import Split
from jaxdpo.storage.continuation import keep_settings
from jaxdpo.storage.files import replacing
from jaxdpo.use_cases.config import UseCasesConfig
from jaxdpo.use_cases.task import Domain, UseCase

# Beside the modules, so that a use case is a .py and a .yaml.
SETTINGS = Path(__file__).parent
# Of the files in a seed's folder: a folder with others is not continued.
_LAYOUT = 2


@dataclass(frozen=True)
class Workshop:
    """One seed of one use case.

    Attributes:
      case: The use case.
      config: Sizes.
      seed: The seed.
      folder: The seed's folder.
    """

    case: UseCase
    config: UseCasesConfig
    seed: int
    folder: Path

    def run(
        self, folder: str, name: str, overrides: Sequence[str], given: Mapping[str, Any]
    ) -> RunConfig:
        """Returns the run configuration of a file that comes with the use cases.

        Args:
          folder: Run folder, in the seed's folder.
          name: Name of the file.
          overrides: Overrides by the user, which have the last word.
          given: Values that the pipeline sets, by `section.field`.
        """
        own = {
            "training.seed": self.seed,
            "training.folder": str(self.folder / folder),
            "data.cache_dir": str(self.folder / "cache"),
            **given,
        }
        said = [f"{key}={json.dumps(value)}" for key, value in own.items()]
        return load_config(SETTINGS / f"{name}.yaml", [*said, *overrides])

    def prompts(self, domain: Domain, split: Split, purpose: str, count: int) -> Path:
        """Writes different prompts to a file, unless it is there, and returns its path.

        Args:
          domain: Their domain.
          split: "TRAIN" or "TEST": whose names they are about.
          purpose: Part of the seed and of the file's name: other purposes draw other prompts.
          count: Number of prompts.
        """
        path = self.folder / "prompts" / f"{domain}-{purpose}.jsonl"
        if not path.exists():
            drawn = self.case.written(domain, split, f"{self.seed} {purpose}")
            asked = ({"messages": [user(one.prompt)]} for one in itertools.islice(drawn, count))
            write_lines(path, asked)
        return path

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds a stage's time to `seconds.json`: on the clock, and of all processor cores."""
        path, wall, cpu = self.folder / "seconds.json", time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            # Also when it is interrupted: the time until then was needed.
            spent = read_json(path) if path.exists() else {}
            before = spent.get(stage, {"wall": 0.0, "cpu": 0.0})
            spent[stage] = {
                "wall": before["wall"] + time.perf_counter() - wall,
                "cpu": before["cpu"] + time.process_time() - cpu,
            }
            write_json(path, spent)


def open_workshop(case: UseCase, config: UseCasesConfig, seed: int) -> Workshop:
    """Opens the workshop of a seed, in its folder.

    Args:
      case: The use case.
      config: Sizes.
      seed: The seed.

    Raises:
      UserError: If the folder was made with other settings.
    """
    folder = Path(config.folder) / case.name / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    # Other seeds and another place change nothing about this one.
    sizes = config.model_dump(mode="json", exclude={"folder", "size", "seeds"})
    keep_settings(
        folder / "sizes.json",
        {**sizes, "layout": _LAYOUT},
        f"{folder} was made with other settings",
        "set folder to a new one",
    )
    return Workshop(case, config, seed, folder)


def user(content: str) -> Message:
    """Returns a user's message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """Returns an assistant's message."""
    return {"role": "assistant", "content": content}


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Writes records as JSON Lines, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def read_lines(path: Path) -> list[Any]:
    """Reads the records of a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole."""
    with replacing(path) as file:
        json.dump(value, file, indent=1)


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
