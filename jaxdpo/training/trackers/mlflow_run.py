"""MLflow: the server that MLFLOW_TRACKING_URI names, else a database in the run folder."""

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdpo.training.trackers.tracker import PROJECT, TrackedRun

# MLflow takes this many parameters in one call, and values of this many characters.
_MOST_PARAMS, _LONGEST = 100, 6000
# It allows no other characters in names; a criterion may be called anything.
_FORBIDDEN = re.compile(r"[^\w\-. :/]")


class MLflow:
    """Logs to a run of MLflow.

    Args:
      run: The run.
    """

    def __init__(self, run: TrackedRun):
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self._metric: Any = Metric
        folder = run.folder.resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client: Any = MlflowClient(uri or f"sqlite:///{folder / 'mlflow.db'}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        self.id = run.ids.get("mlflow", "")
        if not self.id:
            # A server keeps artifacts where it likes; without one they stay in the run folder.
            place = None if uri else (folder / "mlflow").as_uri()
            experiment = self._experiment(name, place)
            self.id = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(key, str(value)[:_LONGEST]) for key, value in run.settings.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self.id, params=params[start : start + _MOST_PARAMS])

    def _experiment(self, name: str, place: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return self._client.create_experiment(name, artifact_location=place)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Logs every metric under its split's name.

        Args:
          step: Optimizer steps done.
          split: "TRAIN" or "TEST".
          metrics: Name ↦ value.
        """
        now = int(time.time() * 1000)
        logged = [
            self._metric(f"{split}/{_FORBIDDEN.sub('_', name)}", value, now, step)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self.id, metrics=logged)

    def publish(self, files: Sequence[Path]) -> None:
        """Logs the files as artifacts."""
        for file in files:
            self._client.log_artifact(self.id, str(file))

    def close(self) -> None:
        """Marks the run as ended."""
        # Without it the server shows a run that never ends.
        self._client.set_terminated(self.id)
