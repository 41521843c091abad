"""Configurations of small runs, which the tests of runs share."""

from pathlib import Path

from jaxdpo.config import RunConfig, load_config
from tests.folders import write_model, write_pairs


def write_inputs(folder: Path, count: int = 30, test: int = 6) -> Path:
    """Writes a model and a file of preference pairs, which `settings` names, into a folder."""
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", count, test=test)
    return folder


def settings(inputs: Path, run: Path, *overrides: str) -> list[str]:
    """Arguments of a run on such inputs; later ones win.

    Args:
      inputs: The folder of `write_inputs`.
      run: The run folder.
      overrides: `section.field=value`.
    """
    return [
        f"model.path={inputs / 'model'}",
        f"data.path={inputs / 'pairs.jsonl'}",
        f"data.cache_dir={inputs / 'cache'}",
        f"training.folder={run}",
        "training.completions=0",
        "batch.size=8",
        "optimizer.learning_rate=1e-3",
        *overrides,
    ]


# All eight devices of the tests, the parameters in eight pieces.
EIGHT_PIECES = ("mesh.data=1", "mesh.fsdp=8")


def run_config(inputs: Path, run: Path, *overrides: str) -> RunConfig:
    """The configuration of a run on eight devices."""
    return load_config(None, settings(inputs, run, *EIGHT_PIECES, *overrides))
