"""The records of a run: metrics of steps and evaluations, checked and shown, and checkpoints."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NoReturn, Self

import jax
import numpy as np

from jaxdpo.cli.console import Reporter, StepProgress
from jaxdpo.devices.sharding import agreed
from jaxdpo.devices.sizes import ceil_div
from jaxdpo.evaluation.answer_health import collapsed
from jaxdpo.model.decoder import Params
from jaxdpo.printable import show
from jaxdpo.runs.displacement import most_displacing, named
from jaxdpo.runs.folder import RunFolder, report_path
from jaxdpo.runs.held_out import held_out_metrics, held_out_scores
from jaxdpo.runs.report.live import LiveReport
from jaxdpo.runs.setup import Setup
from jaxdpo.runs.tracking import open_writer
from jaxdpo.runs.watch import WatchedPrompts
from jaxdpo.training.best_step import BestStep, metric_of
from jaxdpo.training.checkpoint import Checkpoints
from jaxdpo.training.health import Watch, check_finite, check_step_zero
from jaxdpo.training.metrics import DeviceMetrics, LaggedMetrics, Metrics
from jaxdpo.training.remedies import Remedies
from jaxdpo.training.signals import StopRequest
from jaxdpo.training.state import TrainState
from jaxdpo.training.writers import read_metrics

# Pairs that the warning of displacement names.
_NAMED_DISPLACING = 5


class Recorder:
    """Reads a run's metrics off the device, checks, writes and shows them, and saves its state.

    Args:
      setup: The run.
      frozen: Parameters that do not train, or None.
      folder: The run folder.
      checkpoints: Where the state is saved.
      reporter: Where evaluations are shown.
      bar: Where steps are shown.
      first_step: Steps already done.
    """

    def __init__(
        self,
        setup: Setup,
        frozen: Params | None,
        folder: RunFolder,
        checkpoints: Checkpoints,
        reporter: Reporter,
        bar: StepProgress,
        first_step: int,
    ):
        self._setup, self._frozen, self._folder = setup, frozen, folder
        self._checkpoints, self._reporter, self._bar = checkpoints, reporter, bar
        config, num_steps = setup.config, setup.plan.num_steps
        self._first_step = first_step
        self._every = config.training.evaluate_every or ceil_div(num_steps, 10)
        self._writer = open_writer(config, folder, first_step, reporter)
        self._lagged = LaggedMetrics()
        lora = config.lora is not None
        self._watch = Watch(Remedies(config.loss, config.optimizer, lora, num_steps))
        self._watched = WatchedPrompts.of(setup)
        self._report = LiveReport(setup, folder, reporter, first_step)
        self._compiling = ExitStack()
        self._first_test: Metrics | None = None
        self.best: BestStep | None = None
        if config.checkpoint.best is not None:
            self.best = BestStep(config.checkpoint.best, metric_of(config.checkpoint.best))
        self.stopped: str | None = None
        # A run that continues has seen, and said, what was recorded before.
        for record in read_metrics(folder.path):
            if record["step"] <= first_step:
                seen = self._watch.test if record["split"] == "TEST" else self._watch.train
                seen(record["step"], record)
                if record["split"] == "TEST":
                    self._follow(record["step"], record)
        best = self.best
        if best is not None and best.step is not None and not checkpoints.has_best(best.step):
            # It was begun with another `checkpoint.best`: the next evaluation is the first.
            best.step, best.value = None, math.nan

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._compiling.close()
        if self._writer:
            self._writer.close()
            # A run that goes on to its export has more to tell: its page, and its curves.
            if kind is not None:
                self._writer.trackers.close()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Gives the trackers the page and the curves that the block makes, and closes them."""
        if self._writer is None:
            yield
            return
        path, trackers = self._folder.path, self._writer.trackers
        try:
            yield
            with self._reporter.phase("passing the page and the curves on"):
                trackers.publish([report_path(path), path / "curves.png"])
        finally:
            trackers.close()

    def begin(self, step: int, state: TrainState, stop: StopRequest) -> None:
        """Scores the TEST pairs before the first step of this process, if that is due.

        Args:
          step: Steps already done.
          state: The state after them.
          stop: Whether the process was asked to stop.

        Raises:
          SystemExit: With the status of the signal, if it was.
        """
        if self.evaluates_after(step):
            self.evaluate(step, state, stop)
        if stop.cuts_short():
            done = f"saved after step {step}" if step else "stopped before the first step"
            exit_stopped(self._reporter, stop, done)
        self._compiling.enter_context(self._reporter.phase("compiling and taking the first step"))

    def step(self, step: int, metrics: DeviceMetrics) -> None:
        """Takes the metrics of a step under way; records those of the step before it."""
        self._record(self._lagged.push(step, metrics))
        # The first step compiles, and its metrics are checked before there is a second.
        if step == self._first_step + 1:
            self.flush()
            self._compiling.close()

    def goes_on(
        self, step: int, state: TrainState, metrics: DeviceMetrics, stop: StopRequest
    ) -> bool:
        """Records a step, and saves and evaluates what is due; tells whether there is another.

        Args:
          step: Steps done.
          state: The state after them.
          metrics: Those of the last one, perhaps still being computed.
          stop: Whether the process was asked to stop.

        Raises:
          SystemExit: If it was; the state is saved.
        """
        self.step(step, metrics)
        if self.saves_after(step) or self.evaluates_after(step):
            self.keep(step, state, stop)
        if self.stopped:
            return False
        if stop.after_step():
            self.save_now(step, state)
            exit_stopped(self._reporter, stop, f"saved after step {step}")
        return True

    def flush(self) -> None:
        """Waits for the last step's metrics and records them."""
        self._record(self._lagged.flush())

    def saves_after(self, step: int) -> bool:
        """Tells whether a checkpoint is due after a step."""
        # Always after the last step, which a finished run is continued from for more epochs.
        every = self._setup.config.checkpoint.every
        return step == self._setup.plan.num_steps or step % every == 0

    def evaluates_after(self, step: int) -> bool:
        """Tells whether an evaluation is due after a step; one is due before the first."""
        return step == self._setup.plan.num_steps or step % self._every == 0

    def keep(self, step: int, state: TrainState, stop: StopRequest) -> None:
        """Saves the state and scores the TEST pairs, whichever is due after a step.

        Args:
          step: Steps done.
          state: The state after them.
          stop: Cuts an evaluation off.
        """
        # Nothing is saved that has not been checked.
        self.flush()
        if self.saves_after(step):
            self._checkpoints.save(step, state)
        if self.evaluates_after(step):
            self.evaluate(step, state, stop)

    def evaluate(self, step: int, state: TrainState, stop: StopRequest) -> None:
        """Scores the TEST pairs, if there are any, and records their metrics, once a step.

        Asked to stop, it leaves off; the run that continues from this step evaluates it.

        Args:
          step: Steps done.
          state: The state after them.
          stop: Whether the process was asked to stop.
        """
        setup = self._setup
        if setup.test is None or agreed(self._writer is None or self._writer.has_test(step)):
            return
        params, lora = setup.objective.split(state.evaluated, self._frozen)
        with self._reporter.phase("scoring the TEST pairs"):
            policy = held_out_scores(setup, params, lora, stop.cuts_short)
        if policy is None:
            return
        metrics = held_out_metrics(setup, policy)
        if self._watched is not None:
            with self._reporter.phase("answering TEST prompts"):
                metrics |= self._watched.answer(step, params, lora, self._folder)
        # Saved before the record is written: a record tells a run that continues that it need not
        # evaluate this step again.
        if self._follow(step, metrics):
            self._checkpoints.save_best(step, state.evaluated)
        if self._writer:
            self._writer.write(step, "TEST", metrics)
        self._reporter.evaluation(step, metrics)
        before = set(self._watch.warned)
        self._warn(self._watch.test(step, metrics))
        if "displaced" in self._watch.warned - before:
            self._name_displacing(params, lora)
        self._report.evaluated(step, policy)
        # The time of an evaluation is no part of the next step's.
        self._lagged.restart_clock()

    def _follow(self, step: int, metrics: Metrics) -> bool:
        """Takes an evaluation's metrics; tells whether it is the best, and notes a collapse."""
        # Answers are compared with those before training: a base may leave some unfinished itself.
        if self._first_test is None:
            self._first_test = metrics
        if self.best is None:
            return False
        rule = self._setup.config.training.stop
        if rule is not None and rule.broken is not None:
            self.stopped = collapsed(self._first_test, metrics, rule.broken)
        # A policy that has fallen apart may still tell chosen from rejected, and better than any.
        is_best = self.stopped is None and self.best.take(step, metrics)
        if rule is None:
            return is_best
        if self.stopped is None and rule.worse is not None and self.best.since >= rule.worse:
            self.stopped = (
                f"{self.best.by} on TEST has not improved in {self.best.since} evaluations since "
                f"step {self.best.step}"
            )
        return is_best

    def _name_displacing(self, params: Params, lora: Params | None) -> None:
        """Names the TRAIN pairs that displace most, under the policy as it is now."""
        setup = self._setup
        compute, model = setup.objective.compute, setup.objective.model
        found = most_displacing(
            model, params, lora, compute, setup.train, setup.mesh, _NAMED_DISPLACING
        )
        if found.pairs:
            text = (
                f"  the likeliest causes, of {found.scored} TRAIN pairs, by CHES score (median "
                f"{found.median:.2f}): {named(found.pairs)}. Read them, and drop those whose two "
                "answers differ in nothing that matters"
            )
            self._reporter.say(text)
            self._report.note(text.strip())

    def save_now(self, step: int, state: TrainState) -> None:
        """Saves the state whether or not a checkpoint is due, and waits until it is on disk."""
        self.flush()
        self._checkpoints.save(step, state)
        self._checkpoints.wait()

    def _record(self, ready: tuple[int, Metrics] | None) -> None:
        if ready is None:
            return
        step, metrics = ready
        setup, config = self._setup, self._setup.config
        if self._ends_broken(step, metrics):
            return
        check_finite(step, metrics, lambda: self._sources(step - 1))
        started_equal = config.reference.path is None and config.reference_kind != "none"
        if step == 1 and started_equal:
            check_step_zero(metrics, config.loss.beta, setup.objective.compute.dtype.name)
        metrics = {**metrics, **self._checkpoints.finished()}
        if self._writer:
            self._writer.write(step, "TRAIN", metrics)
        self._bar.update(step, metrics)
        self._warn(self._watch.train(step, metrics))

    def _ends_broken(self, step: int, metrics: Metrics) -> bool:
        """Tells whether the run ends here, its loss being infinite and a better step being kept."""
        # Without a better step to go back to, the error of `check_finite` says more.
        finite = np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
        kept = self.best is not None and self.best.step is not None
        if finite or not kept or self._setup.config.training.stop is None:
            return False
        self.stopped = (
            f"loss is {metrics['loss']}, gradient norm {metrics['grad_norm']} at step {step}"
        )
        return True

    def _sources(self, step: int) -> list[str]:
        source = self._setup.train.source
        return [source.source(int(index)) for index in self._setup.plan.pairs(step)]

    def _warn(self, warnings: list[str]) -> None:
        for warning in warnings:
            self._reporter.say(warning)


def end_training(checkpoints: Sequence[Checkpoints], stop: StopRequest, reporter: Reporter) -> None:
    """Waits until the last checkpoints are on disk, and ends the process if it was asked to stop.

    Args:
      checkpoints: Those of each run.
      stop: The request.
      reporter: Says so.

    Raises:
      SystemExit: With the status of the signal.
    """
    for each in checkpoints:
        each.wait()
    if stop.after_last_step():
        exit_stopped(reporter, stop, "trained to the end, and not yet exported")


def exit_stopped(reporter: Reporter, stop: StopRequest, done: str) -> NoReturn:
    """Ends the process as one that a signal ended.

    Args:
      reporter: Says so; the other processes of a run say it too, each into its own log.
      stop: The request.
      done: What became of the run.

    Raises:
      SystemExit: With 128 and the number of the signal.
      KeyboardInterrupt: If it was Ctrl-C, in a run of one process.
    """
    if stop.interrupts:
        reporter.say(done)
        raise KeyboardInterrupt
    said = f"{stop.cause}: {done}; run it again to continue"
    if jax.process_index() == 0:
        reporter.say(said)
    else:
        show(said)
    sys.exit(stop.status)
