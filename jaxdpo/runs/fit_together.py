"""Several runs at once: adapters on one base, each in a run folder of its own."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from jaxdpo.cli.console import Reporter
from jaxdpo.config import RunConfig
from jaxdpo.data.tokenization.load_pairs import LoadedPairs
from jaxdpo.devices.compilation_cache import keep_compiled
from jaxdpo.devices.sharding import make_mesh
from jaxdpo.hub.policy import Policy
from jaxdpo.model.decoder import Params
from jaxdpo.runs.exported_step import ExportedStep, choose_step
from jaxdpo.runs.fit import RunResult, begin_or_continue, finish, finished, fit
from jaxdpo.runs.folder import RunFolder, open_run_folder
from jaxdpo.runs.recorder import Recorder, end_training, exit_stopped
from jaxdpo.runs.setup import Setup, set_up
from jaxdpo.runs.summary import answer_test_prompts
from jaxdpo.training.checkpoint import Checkpoints
from jaxdpo.training.loop import run_steps
from jaxdpo.training.multi_run import Unstack, stack_states
from jaxdpo.training.profiling import traced
from jaxdpo.training.signals import stop_on_signal
from jaxdpo.training.state import TrainState
from jaxdpo.training.step import make_train_step


@dataclass(frozen=True)
class _Begun:
    """A run that is set up, as `fit` holds it in its local variables.

    Attributes:
      setup: The run.
      folder: Its folder.
      before: Its answers to TEST prompts before training.
      state: Its state after the steps done.
      frozen: Parameters that do not train.
      checkpoints: Where it is saved.
    """

    setup: Setup
    folder: RunFolder
    before: list[str]
    state: TrainState
    frozen: Params | None
    checkpoints: Checkpoints


def fit_together(
    configs: Sequence[RunConfig], policy: Policy | None = None, pairs: LoadedPairs | None = None
) -> list[RunResult]:
    """Trains several adapters at once on one base, as `fit` trains one.

    Each folder holds the run as if it had been started alone, and can be continued alone. Runs
    that have not done equally many steps, because one was cut off, are trained one group after
    another.

    Args:
      configs: The runs. They must train adapters, and differ in `training.folder` and the numbers
        of `multi_run.NUMBERS` alone.
      policy: A model in memory, instead of the one at `model.path`.
      pairs: Tokenised pairs in memory, instead of those at `data.path`.

    Raises:
      UserError: As `fit` does.
      SystemExit: As `fit` does.
    """
    keep_compiled(configs[0].data.cache_folder() / "compiled")
    mesh, reporter = make_mesh(configs[0].mesh), Reporter(quiet=jax.process_index() != 0)
    results: dict[int, RunResult] = {}
    by_step: defaultdict[int, dict[int, _Begun]] = defaultdict(dict)
    with ExitStack() as held:
        folders = [held.enter_context(open_run_folder(config)) for config in configs]
        # All folders are held before any is trained in: none is lost to another process later.
        held.enter_context(jax.set_mesh(mesh))
        for number, (config, folder) in enumerate(zip(configs, folders, strict=True)):
            if (summary := folder.finished()) is not None:
                results[number] = finished(config, folder, summary, mesh, reporter)
                continue
            # Model and data are the same for all runs; the first one describes them.
            shown = reporter if not by_step else Reporter(quiet=True)
            setup = set_up(config, policy, pairs, mesh, folder, shown)
            before = answer_test_prompts(setup, setup.policy, folder, "before")
            state, frozen, checkpoints = begin_or_continue(setup, folder, reporter)
            # Runs that stand at different steps need different pairs next.
            begun = _Begun(setup, folder, before, state, frozen, checkpoints)
            by_step[int(state.step)][number] = begun
        together = [(step, runs) for step, runs in by_step.items() if len(runs) > 1]
        for first_step, runs in together:
            recorders, exports = _train(list(runs.values()), first_step, mesh, reporter)
            trained = zip(runs.items(), recorders, exports, strict=True)
            for (number, run), recorder, exported in trained:
                with recorder.publishing():
                    results[number] = finish(run.setup, exported, run.folder, run.before, reporter)
    # A run that was cut off at a step of its own has none beside it. Its folder is free again here.
    by_step.clear()
    for number, config in enumerate(configs):
        if number not in results:
            results[number] = fit(config, policy, pairs)
    return [results[number] for number in range(len(configs))]


def _train(
    runs: Sequence[_Begun], first_step: int, mesh: Mesh, reporter: Reporter
) -> tuple[list[Recorder], list[ExportedStep]]:
    """Takes the optimizer steps of all runs, as `fit`'s loop does for one."""
    first, last_step = runs[0], runs[0].setup.plan.num_steps
    # One program computes all runs: the base is multiplied once for the rows of all of them, and
    # each adapter sees its own rows. That is what makes them cheaper together.
    states = stack_states([run.state for run in runs], mesh)
    unstack = Unstack(states, mesh)
    train_step = make_train_step(
        [run.setup.objective for run in runs], [run.setup.optimizer for run in runs], mesh, states
    )
    with ExitStack() as held:
        stop = held.enter_context(stop_on_signal())
        bar = held.enter_context(reporter.progress(last_step, first_step))
        recorders = [
            held.enter_context(
                Recorder(
                    run.setup,
                    run.frozen,
                    run.folder,
                    run.checkpoints,
                    reporter.named(run.folder.path.name),
                    bar,
                    first_step,
                )
            )
            for run in runs
        ]
        for k, recorder in enumerate(recorders):
            recorder.begin(first_step, unstack.state(states, k), stop)
        steps = run_steps(
            train_step, states, first.frozen, first.setup.train, first.setup.plan, mesh, first_step
        )
        profile = first.setup.config.training.profile
        for step, states, metrics in traced(steps, profile, first.folder.path, first_step):
            for k, recorder in enumerate(recorders):
                recorder.step(step, unstack.metrics(metrics, k))
            # Steps, checkpoints and evaluations fall together: the runs differ in numbers alone.
            if recorders[0].saves_after(step) or recorders[0].evaluates_after(step):
                for k, recorder in enumerate(recorders):
                    recorder.keep(step, unstack.state(states, k), stop)
            if stop.after_step():
                for k, recorder in enumerate(recorders):
                    recorder.save_now(step, unstack.state(states, k))
                exit_stopped(reporter, stop, f"saved after step {step}")
        end_training([run.checkpoints for run in runs], stop, reporter)
    exports = [
        choose_step(run.setup, unstack.state(states, k), recorder, run.checkpoints, reporter)
        for k, (run, recorder) in enumerate(zip(runs, recorders, strict=True))
    ]
    return recorders, exports
