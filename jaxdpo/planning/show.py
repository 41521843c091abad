"""Shows a plan as tables and lines."""

from dataclasses import replace

from jaxdpo.cli.console import Reporter
from jaxdpo.model.config import ModelConfig
from jaxdpo.planning.chips import Target
from jaxdpo.planning.plan import Plan
from jaxdpo.planning.suggest import Choice

_GIB = 2**30


def show_plan(reporter: Reporter, plan: Plan, target: Target | None) -> None:
    """Shows memory, work and time, and ends with the verdict.

    Args:
      reporter: Where it is shown.
      plan: The plan.
      target: The machine planned for; None for the one at hand.
    """
    resolved = plan.resolved
    axes = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items() if size > 1)
    kind = plan.mesh.devices.flat[0].device_kind
    reporter.say(f"mesh    {plan.mesh.size} × {kind}" + (f" ({axes})" if axes else ""))
    # Steps were planned on a sample of the pairs.
    whole = replace(resolved, plan=replace(resolved.plan, num_steps=plan.steps))
    reporter.say(f"plan    {whole.describe()}")
    reporter.table("Memory of one device", ("part", "GiB"), memory_rows(plan))
    reporter.table("A step, and the run", ("what", "value"), work_rows(plan, target))
    reporter.say(_verdict(plan))


def memory_rows(plan: Plan) -> list[tuple[str, str]]:
    """Returns the parts of a device's memory, their peak, and the memory that there is."""
    memory, compiled = plan.memory, plan.compiled
    # The compiler knows the peak; only the state's part of it is known exactly from shapes, so the
    # rest is what remains, and its parts are estimates.
    held = memory.parameters + memory.frozen + memory.optimizer
    parts = [
        ("parameters that train", memory.parameters),
        ("frozen parameters", memory.frozen),
        ("optimizer", memory.optimizer),
        ("temporaries, all", max(0.0, compiled.peak - held)),
        ("  of these, gradients (formula)", memory.gradients),
        ("  activations kept (trace)", memory.activations),
        ("  a layer and the head (formula)", memory.workspace),
        ("peak" if compiled.fits else "peak it would need", compiled.peak),
        ("if nothing shared memory", compiled.together),
        ("device, what a program may use", plan.machine.memory),
    ]
    return [(name, f"{size / _GIB:.2f}") for name, size in parts if size]


def work_rows(plan: Plan, target: Target | None) -> list[tuple[str, str]]:
    """Returns the work of a step, and the time that steps and run take."""
    cost, resolved = plan.cost, plan.resolved
    counts = ", ".join(
        f"{count} {kind}" for kind, count in sorted(plan.compiled.collectives.items())
    )
    rows = [
        ("places that hold tokens", f"{cost.packing:.0%}"),
        ("useful TFLOPs a step", _count(cost.useful / 1e12)),
        ("TFLOPs done a step", _count(cost.done / 1e12)),
        ("GB sent by a device a step", f"{cost.sent / 1e9:.3g}"),
        ("collectives in the program", counts or "none"),
    ]
    speed, hours = plan.pairs_per_second(), plan.hours()
    if plan.seconds is None or speed is None or hours is None:
        return rows
    how = "timed" if target is None else "expected"
    rows += [
        (f"seconds a step, {how}", _range(plan.seconds)),
        ("pairs a second", _range(speed)),
        (f"hours for {plan.count} pairs, {plan.steps} steps", _range(hours)),
    ]
    if target is not None:
        flops = target.chip.flops * 1e12 * len(target.devices)
        # The share of the maker's FLOP/s that does useful work: model FLOPs utilisation.
        used = tuple(cost.useful / seconds / flops for seconds in reversed(plan.seconds))
        rows.append(("of the stated FLOP/s, useful", f"{used[0]:.0%} to {used[1]:.0%}"))
    if resolved.shape.rows > 1 and cost.packing < 0.7:
        rows.append(
            ("idle rows", "batch.size fills too few of them: raise it, or take fewer devices")
        )
    return rows


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _range(values: tuple[float, float]) -> str:
    low, high = (f"{value:.3g}" for value in values)
    return low if low == high else f"{low} to {high}"


def _verdict(plan: Plan) -> str:
    peak, memory = plan.compiled.peak / _GIB, plan.machine.memory / _GIB
    why = {
        "fits": f"a step holds {peak:.2f} of {memory:.2f} GiB at its peak",
        "tight": f"a step holds {peak:.2f} of {memory:.2f} GiB at its peak, too near to be sure",
        "does not fit": f"a step needs {peak:.2f} GiB on a device, and there are {memory:.2f}",
    }[plan.verdict]
    return f"{plan.verdict}: {why}"


def show_suggestion(
    reporter: Reporter, plan: Plan, choices: list[Choice], model: ModelConfig
) -> None:
    """Shows the fastest way to run that should fit, where it is another one.

    Args:
      reporter: Where it is shown.
      plan: The plan of the run as it is configured.
      choices: The fastest ways to run, best first.
      model: Architecture.
    """
    if not choices:
        reporter.say(
            "no mesh, microbatch or remat was found that fits; take more devices, or LoRA, with "
            "lora.base=nf4 if need be"
        )
        return
    best = choices[0]
    if plan.verdict == "fits" and plan.seconds and best.seconds[1] > 0.95 * plan.seconds[1]:
        reporter.say("by formula, no mesh, microbatch or remat is faster by more than 5%")
        return
    size = plan.config.batch.size
    speed = (size / best.seconds[1], size / best.seconds[0])
    reporter.say(
        f"suggested, by formula: {_range(speed)} pairs a second with about "
        f"{best.memory(model) / _GIB:.1f} GiB; plan it to be sure:\n  {best.overrides()}"
    )
