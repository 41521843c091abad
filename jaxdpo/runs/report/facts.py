"""Keeps what a run's other files do not say: machine, versions, times, lengths, what was said.

`run.json` in the run folder holds it, with an entry for each process that worked on the run.
"""

import datetime
import importlib.metadata
import os
import platform
from typing import Any

import jax
import numpy as np

from jaxdpo import __version__
from jaxdpo.cli.console import Reporter
from jaxdpo.inspection.tokens import part_names
from jaxdpo.pages.histograms import bin_counts
from jaxdpo.runs.folder import FACTS_FILE, RunFolder
from jaxdpo.runs.setup import Setup, mesh_text

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers"),
    *("datasets", "grain", "safetensors", "numpy"),
)


class Facts:
    """The facts of a run under way.

    Args:
      setup: The run.
      folder: Its folder, where facts of earlier processes are read and all are written.
      reporter: Knows what was said, and the phases with their time.
      first_step: Steps that were done before.
    """

    def __init__(self, setup: Setup, folder: RunFolder, reporter: Reporter, first_step: int):
        self._folder, self._reporter = folder, reporter
        kept = folder.read_json(FACTS_FILE) or {}
        # A process that was killed after this step wrote what the steps since then took.
        earlier = [each for each in kept.get("sessions", ()) if each["first_step"] < first_step]
        self._session: dict[str, Any] = {
            "begun": reporter.begun.isoformat(timespec="seconds"),
            "first_step": first_step,
            "machine": _machine(setup),
            "versions": _versions(),
            "said": [*reporter.said],
        }
        self._facts: dict[str, Any] = {
            "num_steps": setup.plan.num_steps,
            "batch_size": setup.plan.packer.config.size,
            "lengths": _lengths(setup),
            "sessions": [*earlier, self._session],
        }
        self._notes: list[str] = kept.get("notes", [])
        # Warnings of the set-up are said before there are metrics that they could be told from.
        for line in reporter.said:
            if line.startswith("warning"):
                self.note(line)

    def note(self, text: str) -> None:
        """Keeps a line that belongs on the page, such as the pairs behind a warning."""
        if text not in self._notes:
            self._notes.append(text)

    def write(self, step: int) -> None:
        """Writes all facts as they are after a step."""
        # Written whole each time: a process that is killed leaves the facts of its last evaluation.
        self._session["last_step"] = step
        now = datetime.datetime.now().astimezone()
        self._session["seen"] = now.isoformat(timespec="seconds")
        self._session["seconds"] = self._reporter.seconds()
        self._session["phases"] = dict(self._reporter.phases)
        self._folder.write_json(FACTS_FILE, {**self._facts, "notes": self._notes})


def _machine(setup: Setup) -> dict[str, Any]:
    # Neither the name of the machine nor that of its user: pages are passed on.
    return {
        "devices": mesh_text(setup.mesh),
        "count": setup.mesh.size,
        "processes": jax.process_count(),
        "processor": f"{os.cpu_count()} × {platform.machine()}",
        "system": f"{platform.system()} {platform.release()}",
    }


def _versions() -> dict[str, str]:
    found = {"jaxdpo": __version__, "Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # Some come with extras; what is not there made no difference.
            continue
    return found


def _lengths(setup: Setup) -> dict[str, Any]:
    """Returns quantiles and a histogram of the tokens of each part, by split."""
    found: dict[str, Any] = {}
    for split, pairs in (("TRAIN", setup.train), ("TEST", setup.test)):
        if pairs is None or not len(pairs.packer.lengths):
            continue
        lengths = pairs.packer.lengths
        if not lengths[:, 2].any():
            lengths = lengths[:, :2]
        # Counts and not lengths: a million pairs would make a page of megabytes.
        width, counts = bin_counts(list(lengths.T))
        quantiles = np.percentile(lengths, [50, 95, 100], axis=0).T
        named = zip(part_names(lengths), quantiles, counts, strict=True)
        parts = {
            name: {"quantiles": of_part.tolist(), "counts": count.tolist()}
            for name, of_part, count in named
        }
        found[split] = {"width": width, "parts": parts}
    return found
