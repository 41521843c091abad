"""What a run records while it lasts: the metrics of steps and evaluations, checked and shown."""

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdpo.cli.console import Reporter, StepProgress
from jaxdpo.config import RunConfig
from jaxdpo.devices.sharding import agreed
from jaxdpo.model.decoder import Params
from jaxdpo.runs.folder import RunFolder
from jaxdpo.runs.setup import Prepared
from jaxdpo.scoring.score import score_pairs
from jaxdpo.scoring.scores import Completions
from jaxdpo.training.health import Watch
from jaxdpo.training.held_out import preference_metrics
from jaxdpo.training.loop import DeviceMetrics, LaggedMetrics, check_finite, check_step_zero
from jaxdpo.training.signals import StopRequest
from jaxdpo.training.writers import MetricWriter, read_metrics


class Recorder:
    """Reads metrics off the device, checks them, writes and shows them.

    Args:
      config: The run's configuration.
      run: What the run works with.
      mesh: The mesh.
      folder: The run folder.
      reporter: Where evaluations are shown.
      bar: Where steps are shown.
      first_step: Steps already done.
    """

    def __init__(
        self,
        config: RunConfig,
        run: Prepared,
        mesh: Mesh,
        folder: RunFolder,
        reporter: Reporter,
        bar: StepProgress,
        first_step: int,
    ):
        self._config, self._run, self._mesh = config, run, mesh
        self._reporter, self._bar = reporter, bar
        self._writer = MetricWriter(folder.path, first_step) if folder.writes else None
        self._lagged = LaggedMetrics()
        self._watch = Watch(run.train.plan.num_steps, config.optimizer.max_grad_norm)
        # A run that continues has seen, and said, what was recorded before.
        for record in read_metrics(folder.path):
            if record["step"] <= first_step:
                seen = self._watch.test if record["split"] == "TEST" else self._watch.train
                seen(record["step"], record)

    def step(self, step: int, metrics: DeviceMetrics) -> None:
        """Takes the metrics of a step under way; records those of the step before it."""
        self._record(self._lagged.push(step, metrics))

    def flush(self) -> None:
        """Waits for the last step's metrics and records them."""
        self._record(self._lagged.flush())

    def evaluate(self, step: int, trainable: Params, stop: StopRequest) -> None:
        """Scores the TEST pairs, if there are any, and records their metrics, once a step.

        Asked to stop, it leaves off; the run that continues from this step evaluates it.
        """
        run = self._run
        if run.test is None or agreed(self._writer is None or self._writer.has_test(step)):
            return
        params, lora = (trainable, None) if run.compute.lora is None else (run.frozen, trainable)
        test = run.test
        scored: list[tuple[np.ndarray, Completions]] = []
        for scores in score_pairs(
            run.score_step, params, lora, test.source, test.packer, test.shape, self._mesh
        ):
            scored.append(scores)
            # Several processes score together or not at all.
            if stop.asked and jax.process_count() == 1:
                return
        order = np.argsort(np.concatenate([indices for indices, _ in scored]))
        policy: Completions = jax.tree.map(
            lambda *leaves: np.concatenate(leaves)[order], *(found for _, found in scored)
        )
        metrics = preference_metrics(self._config.loss, policy, test)
        if self._writer:
            self._writer.write(step, "TEST", metrics)
        self._reporter.evaluation(step, metrics)
        self._warn(self._watch.test(step, metrics))
        self._lagged.restart_clock()

    def close(self) -> None:
        """Closes the files."""
        if self._writer:
            self._writer.close()

    def _record(self, ready: tuple[int, dict[str, float]] | None) -> None:
        if ready is None:
            return
        step, metrics = ready
        check_finite(step, metrics, self._run.train)
        started_equal = self._config.reference.path is None
        if step == 1 and started_equal and self._config.reference_kind != "none":
            check_step_zero(metrics, self._config.loss.beta, self._run.compute.dtype.name)
        if self._writer:
            self._writer.write(step, "TRAIN", metrics)
        self._bar.update(step, metrics)
        self._warn(self._watch.train(step, metrics))

    def _warn(self, warnings: list[str]) -> None:
        for warning in warnings:
            self._reporter.say(warning)
