"""The step of a run that is exported: its last one, or the best on TEST."""

from dataclasses import dataclass

import jax

from jaxdpo.cli.console import Reporter
from jaxdpo.model.decoder import Params
from jaxdpo.runs.recorder import Recorder
from jaxdpo.runs.setup import Setup
from jaxdpo.training.checkpoint import Checkpoints
from jaxdpo.training.state import TrainState


@dataclass(frozen=True)
class ExportedStep:
    """The step of a run that is exported.

    Attributes:
      step: Its number; 0 for the model before training.
      trained: The parameters, or with LoRA the adapters.
      best: How good it is, if it was chosen as the best, such as "loss 0.412".
      stopped: Why the run ended before its last step, or None if it did not.
    """

    step: int
    trained: Params
    best: str | None = None
    stopped: str | None = None


def choose_step(
    setup: Setup,
    state: TrainState,
    recorder: Recorder,
    checkpoints: Checkpoints,
    reporter: Reporter,
) -> ExportedStep:
    """Returns the step that `export.step` names, or the best one of a run that ended early.

    Args:
      setup: The run.
      state: The state after its last step; all of it is freed but what is exported.
      recorder: Knows the best step, and why the run ended.
      checkpoints: Where the best step is kept.
      reporter: Says which step it is, and why.

    Raises:
      UserError: If the best step can't be read back.
    """
    last, stopped = int(state.step), recorder.stopped
    trained = state.evaluated
    # The export is tried in memory, which the optimizer's state, twice as large as what trains,
    # would not leave room for.
    jax.tree.map(lambda leaf: leaf.delete(), (state.optimizer, state.reference))
    if state.average is not None:
        jax.tree.map(lambda leaf: leaf.delete(), state.trainable)
    if stopped:
        reporter.say(f"the run ends after step {last}: {stopped}")
    best = recorder.best
    wanted = stopped is not None or setup.config.export.step == "best"
    if best is None or best.step is None or not wanted:
        return ExportedStep(last, trained)
    said = best.describe()
    reporter.say(f"exporting step {best.step}, the best on TEST: {said}")
    if best.step == last:
        return ExportedStep(last, trained, said, stopped)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        trained,
    )
    jax.tree.map(lambda leaf: leaf.delete(), trained)
    return ExportedStep(best.step, checkpoints.restore_best(best.step, abstract), said, stopped)
