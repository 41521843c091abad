"""The plan of one way to run on one machine: memory, work, time and a verdict."""

from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdpo.config import RunConfig
from jaxdpo.devices.machine import Machine
from jaxdpo.devices.sizes import ceil_div
from jaxdpo.model.config import ModelConfig
from jaxdpo.planning.aot import Compiled, compile_step
from jaxdpo.planning.chips import Target
from jaxdpo.planning.cost import StepCost, step_cost
from jaxdpo.planning.measure import measure
from jaxdpo.runs.execution import Resolved, resolve
from jaxdpo.runs.memory import StepMemory, step_memory

Verdict = Literal["fits", "tight", "does not fit"]
# The quick compile for TPUs finds peaks up to 7% below the thorough one's, which training does.
_MARGIN = {"tpu": 1.07, "gpu": 1.0, "cpu": 1.0}


@dataclass(frozen=True)
class Lengths:
    """Tokens of the pairs that are planned for.

    Attributes:
      train: i32 `[n, 3]`, prompt, chosen and rejected, of a sample of the TRAIN pairs.
      test: Those of the TEST pairs.
      count: TRAIN pairs that there are.
    """

    train: np.ndarray
    test: np.ndarray
    count: int


@dataclass(frozen=True)
class Plan:
    """Figures of a run before it runs.

    Attributes:
      config: The run.
      mesh: Its mesh.
      machine: Its machine.
      resolved: How it is computed.
      memory: By part, from shapes.
      compiled: What the compiler says.
      cost: What a step computes and sends.
      seconds: Of a step, least and most; None where it does not fit.
      count: TRAIN pairs.
    """

    config: RunConfig
    mesh: Mesh
    machine: Machine
    resolved: Resolved
    memory: StepMemory
    compiled: Compiled
    cost: StepCost
    seconds: tuple[float, float] | None
    count: int

    @property
    def verdict(self) -> Verdict:
        """The verdict: a step's peak is below a device's memory, surely or nearly, or is not."""
        compiled, memory = self.compiled, self.machine.memory
        if not compiled.fits or compiled.peak > memory:
            return "does not fit"
        sure = compiled.peak * _MARGIN[self.machine.platform] <= memory
        # Where even without sharing any memory it fits, no allocator can make it fail.
        together = compiled.together is None or compiled.together <= memory
        return "fits" if sure and together else "tight"

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        config = self.config
        steps = ceil_div(int(np.ceil(self.count * config.training.epochs)), config.batch.size)
        return min(steps, config.training.max_steps or steps)

    def pairs_per_second(self) -> tuple[float, float] | None:
        """Returns the least and the most pairs a second; None where the run does not fit."""
        if self.seconds is None:
            return None
        least, most = self.seconds
        return self.config.batch.size / most, self.config.batch.size / least

    def hours(self) -> tuple[float, float] | None:
        """Returns the least and the most hours of the steps, and of the reference's pass before."""
        if self.seconds is None:
            return None
        steps: float = self.steps
        if self.config.reference_kind == "precomputed":
            scored = min(self.count, self.steps * self.config.batch.size) / self.config.batch.size
            # Scoring is a forward pass alone; its share of a step's work is its share of the time.
            steps += scored * self.cost.forward / self.cost.done
        least, most = self.seconds
        return least * steps / 3600, most * steps / 3600


def make_plan(
    config: RunConfig,
    model: ModelConfig,
    lengths: Lengths,
    mesh: Mesh,
    machine: Machine,
    target: Target | None,
) -> Plan:
    """Compiles the run's step and says what it will take.

    Args:
      config: The run.
      model: Architecture.
      lengths: Of the pairs.
      mesh: The mesh, of the target's devices.
      machine: What those are.
      target: The machine planned for; None for the one at hand, where the step is timed.
    """
    with jax.set_mesh(mesh):
        resolved = resolve(config, model, lengths.train, lengths.test, mesh, machine)
        compiled = compile_step(config, model, resolved, mesh, machine.platform)
        seconds = None
        cost = step_cost(config, model, resolved, mesh)
        if compiled.fits and compiled.peak <= machine.memory:
            if target is None:
                timed = measure(config, model, resolved, mesh, compiled)
                seconds = (timed[0], timed[-1])
            else:
                seconds = target.seconds(cost.done, cost.sent)
        memory = step_memory(config, model, resolved.compute, resolved.shape, mesh)
    return Plan(config, mesh, machine, resolved, memory, compiled, cost, seconds, lengths.count)
