"""One training run, from configuration to exported model; read `fit` downwards."""

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxdpo.cli.console import Reporter
from jaxdpo.config import RunConfig
from jaxdpo.data.tokenization.load_pairs import LoadedPairs
from jaxdpo.devices.compilation_cache import keep_compiled
from jaxdpo.devices.sharding import make_mesh
from jaxdpo.devices.sizes import ceil_div
from jaxdpo.hub.policy import Policy, load_policy
from jaxdpo.model.decoder import Params
from jaxdpo.runs.card import run_card
from jaxdpo.runs.execution import objective_of
from jaxdpo.runs.folder import RunFolder, open_run_folder
from jaxdpo.runs.recorder import Recorder
from jaxdpo.runs.setup import Prepared, prepare
from jaxdpo.sampling import complete, numbered
from jaxdpo.training.checkpoint import Checkpoints
from jaxdpo.training.loop import DeviceMetrics, run_steps
from jaxdpo.training.multi_run import make_group
from jaxdpo.training.optimizer import make_optimizer, make_schedule
from jaxdpo.training.signals import StopRequest, stop_on_sigterm
from jaxdpo.training.step import TrainState, init_state
from jaxdpo.training.writers import METRICS_FILE, plot_curves, read_metrics

# What a shell reports of a process that SIGTERM ended.
_STOPPED = 128 + 15


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
      folder: The run folder.
      policy: The aligned model.
      summary: TEST metrics and completions before and after, and where everything lies.
      history: The records of metrics.jsonl.
    """

    folder: Path
    policy: Policy
    summary: dict[str, Any]
    history: list[dict[str, Any]]


def fit(
    config: RunConfig, policy: Policy | None = None, pairs: LoadedPairs | None = None
) -> RunResult:
    """Aligns a model with preference pairs by DPO.

    The same call on the same run folder continues a run that was cut off, from its last checkpoint
    and with the same pairs.

        config = load_config("configs/quickstart.yaml", ["training.folder=runs/first"])
        result = fit(config)
        result.policy.save("aligned")

    Args:
      config: The run.
      policy: A model in memory, instead of the one at `model.path`; it is left as it is.
      pairs: Tokenised pairs in memory, instead of those at `data.path`.

    Raises:
      UserError: For whatever the user can mend.
      SystemExit: With status 143, after a SIGTERM; the state is saved.
    """
    return fit_together([config], policy, pairs)[0]


def fit_together(
    configs: Sequence[RunConfig], policy: Policy | None = None, pairs: LoadedPairs | None = None
) -> list[RunResult]:
    """`fit` of several runs that train adapters at once, on one base; each in its own folder.

    Each folder holds the run as if it had been started alone, and can be continued alone. Runs that
    have not done equally many steps, because one was cut off, are trained apart.

    Args:
      configs: The runs. Several must train adapters, and differ in `training.folder` and the
        numbers of `together.NUMBERS` alone.
      policy: As in `fit`.
      pairs: As in `fit`.

    Raises:
      UserError: As `fit` does.
      SystemExit: As `fit` does.
    """
    first = configs[0]
    keep_compiled(first.data.cache_folder() / "compiled")
    mesh = make_mesh(first.mesh)
    first_process = jax.process_index() == 0
    reporter = Reporter(quiet=not first_process)
    results: dict[int, RunResult] = {}
    by_step: defaultdict[int, dict[int, _Run]] = defaultdict(dict)
    with ExitStack() as held:
        folders = [held.enter_context(open_run_folder(c, writes=first_process)) for c in configs]
        held.enter_context(jax.set_mesh(mesh))
        for number, (config, folder) in enumerate(zip(configs, folders, strict=True)):
            summary = folder.read_json("summary.json")
            if summary is not None:
                results[number] = _finished(config, folder, summary, mesh, reporter)
                continue
            # What is said of model and data is the same of all.
            shown = Reporter(quiet=not first_process or bool(by_step))
            prepared = prepare(config, policy, pairs, mesh, folder, shown)
            run = _begin(config, prepared, folder, mesh, reporter)
            by_step[run.first_step][number] = run
        for runs in by_step.values():
            with stop_on_sigterm() as stop:
                trained = _train(list(runs.values()), mesh, reporter, stop)
            for (number, run), trainable in zip(runs.items(), trained, strict=True):
                results[number] = _finish(run, trainable, reporter)
    return [results[number] for number in range(len(configs))]


@dataclass(frozen=True)
class _Run:
    """A run under way.

    Attributes:
      config: Its configuration.
      prepared: What it works with.
      folder: Its folder.
      before: The answers to TEST prompts before training.
      checkpoints: Where it is saved.
      state: Its state after `first_step` steps; training donates it.
      first_step: Steps done when it was started or continued.
    """

    config: RunConfig
    prepared: Prepared
    folder: RunFolder
    before: list[str]
    checkpoints: Checkpoints
    state: TrainState
    first_step: int


def _begin(
    config: RunConfig, prepared: Prepared, folder: RunFolder, mesh: Mesh, reporter: Reporter
) -> _Run:
    """A run before its first step, or as its newest checkpoint has it."""
    before = _complete(config, prepared, prepared.policy, folder, "before")
    # The schedule is no part of the state.
    schedule = make_schedule(config.optimizer, 1, lora=config.lora is not None)
    optimizer = make_optimizer(config.optimizer, schedule)
    moving = config.reference_kind == "moving"
    reference = jax.tree.map(jnp.copy, prepared.frozen) if moving else None
    state = init_state(prepared.trainable, optimizer, mesh, reference)
    checkpoints = Checkpoints(folder.path / "checkpoints", config.checkpoint.keep)
    state = checkpoints.restore(jax.tree.map(_abstract, state)) or state
    first_step = int(state.step)
    if first_step:
        reporter.say(f"continuing after step {first_step}")
    return _Run(config, prepared, folder, before, checkpoints, state, first_step)


@dataclass(frozen=True)
class _Lanes:
    """Runs whose steps are computed together: what is done for each of them.

    Attributes:
      runs: The runs.
      recorders: Of their metrics.
      take: Of a state or of metrics, one run's part.
    """

    runs: Sequence[_Run]
    recorders: Sequence[Recorder]
    take: Callable[[Any, int], Any]

    def record(self, step: int, metrics: DeviceMetrics) -> None:
        """Takes the metrics of a step under way."""
        for k, recorder in enumerate(self.recorders):
            recorder.step(step, self.take(metrics, k))

    def flush(self) -> None:
        """Waits for the last step's metrics."""
        for recorder in self.recorders:
            recorder.flush()

    def evaluate(self, step: int, state: TrainState, stop: StopRequest) -> None:
        """Scores the TEST pairs."""
        for k, recorder in enumerate(self.recorders):
            recorder.evaluate(step, self.take(state, k).trainable, stop)

    def save(self, step: int, state: TrainState) -> None:
        """Starts to save the state."""
        for k, run in enumerate(self.runs):
            run.checkpoints.save(step, self.take(state, k))

    def finish(self, state: TrainState) -> list[Params]:
        """Closes files, waits for checkpoints and returns what was trained."""
        for recorder, run in zip(self.recorders, self.runs, strict=True):
            recorder.close()
            run.checkpoints.wait()
        return [self.take(state, k).trainable for k in range(len(self.runs))]


def _train(runs: Sequence[_Run], mesh: Mesh, reporter: Reporter, stop: StopRequest) -> list[Params]:
    """The optimizer steps, with evaluations and checkpoints between them; returns the trained."""
    config, data, done = runs[0].config, runs[0].prepared.train, runs[0].first_step
    num_steps = data.plan.num_steps
    group = make_group(
        [
            objective_of(run.config, run.prepared.policy.config, run.prepared.compute)
            for run in runs
        ],
        [run.config.optimizer for run in runs],
        [run.state for run in runs],
        num_steps,
        mesh,
    )
    evaluate_every = config.training.evaluate_every or ceil_div(num_steps, 10)
    with reporter.progress(num_steps, done) as bar:
        names = [run.folder.path.name if len(runs) > 1 else "" for run in runs]
        recorders = [
            Recorder(run.config, run.prepared, mesh, run.folder, reporter.named(name), bar, done)
            for run, name in zip(runs, names, strict=True)
        ]
        lanes, state = _Lanes(runs, recorders, group.take), group.state
        if done % evaluate_every == 0 or done == num_steps:
            lanes.evaluate(done, state, stop)
        if stop.asked and jax.process_count() == 1:
            _exit_stopped(runs, reporter, done)
        steps = run_steps(group.step, state, runs[0].prepared.frozen, data, mesh, done)
        for step, state, metrics in steps:
            lanes.record(step, metrics)
            last = step == num_steps
            saving = last or step % config.checkpoint.every == 0
            evaluating = last or step % evaluate_every == 0
            # The first step's metrics are checked before there is a second; and nothing is saved
            # that has not been checked.
            if step == 1 or saving or evaluating:
                lanes.flush()
            if saving:
                lanes.save(step, state)
            if evaluating:
                lanes.evaluate(step, state, stop)
            if _stop_asked(stop, step):
                lanes.flush()
                lanes.save(step, state)
                _exit_stopped(runs, reporter, step)
        return lanes.finish(state)


def _finished(
    config: RunConfig, folder: RunFolder, summary: dict[str, Any], mesh: Mesh, reporter: Reporter
) -> RunResult:
    """A run that was finished before."""
    reporter.say(f"{folder.path}: this run is finished; set training.folder for a new one")
    final = load_policy(
        str(folder.path / "model"), config.model.param_dtype, mesh, context=config.data.max_length
    )
    return RunResult(folder.path, final, summary, read_metrics(folder.path))


def _finish(run: _Run, trained: Params, reporter: Reporter) -> RunResult:
    """Exports what was trained, and sums the run up."""
    config, folder = run.config, run.folder
    final = _trained_policy(run.prepared, trained)
    after = _complete(config, run.prepared, final, folder, "after")
    reporter.say(f"exporting to {folder.path / 'model'}")
    final = replace(final, card=run_card(config, folder.path))
    final.save(folder.path / "model", lora=config.export.lora, dtype=config.export.dtype)
    history = read_metrics(folder.path)
    texts = list(zip(run.before, after, strict=True))
    summary = _summarise(run.prepared, folder, history, texts)
    if folder.writes:
        plot_curves(history, folder.path / "curves.png")
    folder.write_json("summary.json", summary)
    show_summary(reporter, summary)
    return RunResult(folder.path, final, summary, history)


def _exit_stopped(runs: Sequence[_Run], reporter: Reporter, step: int) -> NoReturn:
    for run in runs:
        run.checkpoints.wait()
    done = f"saved after step {step}" if step else "stopped before the first step"
    reporter.say(f"SIGTERM: {done}; run it again to continue")
    sys.exit(_STOPPED)


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _stop_asked(stop: StopRequest, step: int) -> bool:
    # All processes must stop after the same step; JAX's service agrees on one.
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(step)
    return stop.asked


def _trained_policy(run: Prepared, trainable: Params) -> Policy:
    if run.compute.lora is None:
        return replace(run.policy, params=trainable)
    return replace(run.policy, lora=trainable, lora_config=run.compute.lora)


def _complete(
    config: RunConfig, run: Prepared, policy: Policy, folder: RunFolder, when: str
) -> list[str]:
    """The policy's answers to the first TEST prompts, kept in `completions_<when>.json`."""
    if run.test is None:
        return []
    source = run.test.source
    count = min(config.training.completions, len(source))
    name = f"completions_{when}.json"
    kept = folder.read_json(name)
    if kept is not None:
        return kept
    prompts = [source[index].prompt_ids.tolist() for index in range(count)]
    done = complete(policy, numbered(prompts), config.sampling, run.compute.dtype)
    texts = [each.text for each in sorted(done)]
    folder.write_json(name, texts)
    return texts


def _summarise(
    run: Prepared, folder: RunFolder, history: list[dict[str, Any]], texts: list[tuple[str, str]]
) -> dict[str, Any]:
    """What a finished run says of itself."""
    tested = [record for record in history if record["split"] == "TEST"]
    speeds = [record["pairs_per_second"] for record in history if "pairs_per_second" in record]
    path, completions = folder.path, []
    for index, (before, after) in enumerate(texts):
        assert run.test is not None
        prompt = run.policy.chat.decode(run.test.source[index].prompt_ids.tolist())
        completions.append({"prompt": prompt.strip(), "before": before, "after": after})
    return {
        "steps": run.train.plan.num_steps,
        "pairs_per_second": float(np.median(speeds)) if speeds else None,
        "test": {"before": tested[0], "after": tested[-1]} if tested else None,
        "completions": completions,
        "files": {
            "aligned model": str(path / "model"),
            "curves": str(path / "curves.png"),
            "metrics": str(path / METRICS_FILE),
            "TensorBoard": str(path / "tensorboard"),
            "checkpoints": str(path / "checkpoints"),
            "configuration": str(path / "config.yaml"),
        },
    }


def show_summary(reporter: Reporter, summary: dict[str, Any]) -> None:
    """Shows what a run achieved, and where everything lies."""
    if summary["completions"]:
        rows = [(c["prompt"], c["before"], c["after"]) for c in summary["completions"]]
        reporter.table("TEST prompts, answered", ("prompt", "before", "after"), rows)
    if summary["test"]:
        before, after = summary["test"]["before"], summary["test"]["after"]
        names = ("rewards/accuracies", "rewards/margins", "loss", "logps/chosen", "logps/rejected")
        rows = [
            (name, f"{before[name]:.3f}", f"{after[name]:.3f}") for name in names if name in after
        ]
        reporter.table("TEST pairs", ("metric", "before", "after"), rows)
    reporter.table("Files", ("what", "where"), list(summary["files"].items()))
