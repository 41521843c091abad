"""One training run, from configuration to exported model; read `fit` downwards."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxdpo.cli.console import OnMetrics, Reporter
from jaxdpo.config import RunConfig
from jaxdpo.data.tokenization.load_pairs import LoadedPairs
from jaxdpo.devices.compilation_cache import keep_compiled
from jaxdpo.devices.sharding import make_mesh
from jaxdpo.hub.policy import Policy, load_policy
from jaxdpo.model.decoder import Params
from jaxdpo.runs.card import run_card
from jaxdpo.runs.description import describe_run
from jaxdpo.runs.export import check_read_back, export_of, trained_policy, write_export
from jaxdpo.runs.exported_step import ExportedStep, choose_step
from jaxdpo.runs.folder import RunFolder, open_run_folder
from jaxdpo.runs.longer import continue_longer
from jaxdpo.runs.push import push_run
from jaxdpo.runs.recorder import Recorder, end_training
from jaxdpo.runs.report.live import finish_report
from jaxdpo.runs.setup import Setup, set_up
from jaxdpo.runs.summary import (
    answer_test_prompts,
    goodput,
    show_summary,
    summarise,
    test_records,
)
from jaxdpo.training.checkpoint import Checkpoints
from jaxdpo.training.loop import run_steps
from jaxdpo.training.profiling import traced
from jaxdpo.training.signals import stop_on_signal
from jaxdpo.training.state import TrainState, begin
from jaxdpo.training.step import make_train_step
from jaxdpo.training.writers import plot_curves, read_metrics


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

    def __repr__(self) -> str:
        # A summary holds every metric and answer: pages of them, which no notebook should print.
        steps = self.summary["steps"]
        return f"RunResult(folder={str(self.folder)!r}, {steps} steps, {self._outcome()})"

    def _outcome(self) -> str:
        test = self.summary.get("test")
        if not test:
            return "no TEST pairs"
        shown = [name for name in ("rewards/accuracies", "loss") if name in test["after"]]
        return "TEST " + ", ".join(f"{name} {test['after'][name]:.3f}" for name in shown)


def fit(
    config: RunConfig,
    policy: Policy | None = None,
    pairs: LoadedPairs | None = None,
    on_metrics: OnMetrics | None = None,
) -> RunResult:
    """Aligns a model with preference pairs by DPO.

    The same call continues a run that was cut off, and with more epochs one that is finished.

        config = load_config("configs/quickstart.yaml", ["training.folder=runs/first"])
        result = fit(config)
        result.policy.save("aligned")

    Args:
      config: The run.
      policy: A model in memory, instead of the one at `model.path`; it is left as it is.
      pairs: Tokenised pairs in memory, instead of those at `data.path`.
      on_metrics: Called as `on_metrics(step, split, metrics)` with each record of metrics.jsonl.

    Raises:
      UserError: For whatever the user can fix.
      SystemExit: With 128 and the number of a signal that stopped it; the state is saved.
    """
    keep_compiled(config.data.cache_folder() / "compiled")
    mesh, reporter = make_mesh(config.mesh), Reporter(jax.process_index() != 0, on_metrics)
    with open_run_folder(config) as folder, jax.set_mesh(mesh):
        if (summary := folder.finished()) is not None:
            return finished(config, folder, summary, mesh, reporter)
        # Set-up: everything that can be refused is refused here, before a step is compiled.
        setup = set_up(config, policy, pairs, mesh, folder, reporter)
        before = answer_test_prompts(setup, setup.policy, folder, "before")

        # State: as it is before the first step, or as the newest whole checkpoint has it.
        state, frozen, checkpoints = begin_or_continue(setup, folder, reporter)
        first_step, last_step = int(state.step), setup.plan.num_steps

        # Step: compiled once, when it is first called.
        train_step = make_train_step([setup.objective], [setup.optimizer], mesh, state)

        # Loop: the device computes one step while the host packs the next and reads the last.
        with (
            stop_on_signal() as stop,
            reporter.progress(last_step, first_step) as bar,
            Recorder(setup, frozen, folder, checkpoints, reporter, bar, first_step) as recorder,
        ):
            recorder.begin(first_step, state, stop)
            steps = run_steps(train_step, state, frozen, setup.train, setup.plan, mesh, first_step)
            steps = traced(steps, config.training.profile, folder.path, first_step)
            # A run that ended early, and was cut off before its export, takes no step.
            for step, state, metrics in () if recorder.stopped else steps:
                if not recorder.goes_on(step, state, metrics, stop):
                    break
            end_training([checkpoints], stop, reporter)

        # Finish: the exported model, its answers, the summary.
        with recorder.publishing():
            exported = choose_step(setup, state, recorder, checkpoints, reporter)
            return finish(setup, exported, folder, before, reporter)


def begin_or_continue(
    setup: Setup, folder: RunFolder, reporter: Reporter
) -> tuple[TrainState, Params | None, Checkpoints]:
    """Makes the state before the first step, or restores the newest whole checkpoint.

    Args:
      setup: The run.
      folder: The run folder.
      reporter: Says where the run continues.

    Returns:
      The state, the parameters that do not train, and where the state is saved.
    """
    continue_longer(setup, folder, reporter)
    state, frozen = begin(
        setup.objective,
        setup.optimizer,
        setup.policy.params,
        setup.mesh,
        keep=setup.keeps_policy,
        adapters=setup.policy.lora,
    )
    params = setup.policy.params
    in_fp32 = jax.tree.leaves(params)[0].dtype == jnp.float32
    if setup.objective.compute.lora is None and not (in_fp32 or setup.keeps_policy or frozen):
        # The state holds them in fp32 and rounds them for each forward pass; these are in its way.
        jax.tree.map(lambda leaf: leaf.delete(), params)
    described = describe_run(setup.config, setup.policy, folder.start_digest())
    keep = setup.config.checkpoint.keep
    checkpoints = Checkpoints(folder.path / "checkpoints", keep, described, folder.send)
    state = checkpoints.restore(jax.tree.map(_abstract, state)) or state
    if int(state.step):
        reporter.say(f"continuing after step {int(state.step)}")
    return state, frozen, checkpoints


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def finish(
    setup: Setup, exported: ExportedStep, folder: RunFolder, before: list[str], reporter: Reporter
) -> RunResult:
    """Exports what was trained, tries the exported folder, and sums the run up.

    Args:
      setup: The run.
      exported: The step that is exported.
      folder: The run folder.
      before: Answers to the TEST prompts before training.
      reporter: Shows the summary.
    """
    model = folder.path / "model"
    export = export_of(setup, exported, folder, reporter)
    history = read_metrics(folder.path)
    tested = test_records(setup, exported, export, history, reporter)
    after = answer_test_prompts(setup, export.policy, folder, "after")
    reporter.say(f"exporting to {folder.name}/model")
    card = run_card(setup.config, folder.path, exported.step, tested)
    write_export(setup, export, model, card)
    # The weights as written are freed here, before the folder's take up as much.
    export = replace(export, policy=replace(trained_policy(setup, exported.trained), card=card))
    read_back = check_read_back(setup, export, model)
    summary = summarise(setup, exported, folder, history, tested, before, after)
    summary["exported"] |= export.describe() | {"read_back": read_back}
    if export.rounding_loss is not None:
        summary["rounding_loss"] = export.rounding_loss
    summary["goodput"] = goodput(history, folder, reporter)
    if folder.writes:
        plot_curves(history, folder.path / "curves.png")
    # Written last: a folder that holds it is a finished run's.
    folder.write_json("summary.json", summary)
    finish_report(folder, reporter)
    folder.send()
    push_run(setup.config, folder, reporter)
    show_summary(reporter, summary)
    return RunResult(folder.path, export.policy, summary, history)


def finished(
    config: RunConfig, folder: RunFolder, summary: dict[str, Any], mesh: Mesh, reporter: Reporter
) -> RunResult:
    """Returns the result of a run that was finished before.

    Args:
      config: The run.
      folder: The run folder.
      summary: Its summary.json.
      mesh: The mesh that the aligned model is loaded onto.
      reporter: Says so.
    """
    reporter.say(
        f"{folder.name}: this run is finished; raise training.epochs to go on, or set "
        "training.folder for a new one"
    )
    aligned = load_policy(
        str(folder.path / "model"), config.model.param_dtype, mesh, context=config.data.max_length
    )
    return RunResult(folder.path, aligned, summary, read_metrics(folder.path))
