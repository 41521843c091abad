"""Weights & Biases: the server that is logged in to, else offline files for `wandb sync`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdpo.training.trackers.tracker import PROJECT, TrackedRun

# The horizontal axis of every curve. W&B's own step must never go back, as ours does where a run
# that was cut off takes some steps again.
_STEP = "optimizer_step"


class WandB:
    """Logs to a run of Weights & Biases.

    Args:
      run: The run.
    """

    def __init__(self, run: TrackedRun):
        import wandb  # pyright: ignore[reportMissingImports]

        self._wandb: Any = wandb
        self.id = run.ids.get("wandb") or os.urandom(4).hex()
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=self.id,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            mode=os.environ.get("WANDB_MODE") or self._reachable(),
            settings=wandb.Settings(silent=True),
        )
        self._run.define_metric("*", step_metric=_STEP)

    def _reachable(self) -> Any:
        # Without a key `init` would stop and ask for one, and wait for ever in a job.
        return "online" if self._wandb.login(prompt=False) else "offline"

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Logs every metric under its split's name.

        Args:
          step: Optimizer steps done.
          split: "TRAIN" or "TEST".
          metrics: Name ↦ value.
        """
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        self._run.log({_STEP: step, **named})

    def publish(self, files: Sequence[Path]) -> None:
        """Saves the files with the run, and shows the page among its panels."""
        for file in files:
            self._run.save(str(file), base_path=str(file.parent), policy="now")
            if file.suffix == ".html":
                # The page's own policy stays in force: it fetches nothing there either.
                self._run.log({"report": self._wandb.Html(file.read_text(encoding="utf-8"))})

    def close(self) -> None:
        """Waits until all is written or sent."""
        self._run.finish()
