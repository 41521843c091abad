"""A run in two sentences: the task that it was given, and the verdict with its numbers."""

from pathlib import Path
from typing import Any

from jaxdpo.config import RunConfig
from jaxdpo.evaluation.agreement import share
from jaxdpo.pages.cells import figure, plural
from jaxdpo.runs.report.files import RunFiles
from jaxdpo.training.best_step import PASS_RATE

# Of accuracy: half is what guessing reaches.
_GUESSING = 0.5


def asked(run: RunFiles) -> str:
    """Says what the run was to do, in one sentence."""
    config = run.config
    pairs = (run.data.get("TRAIN") or {}).get("pairs")
    counted = f"{pairs:,} " if pairs is not None else ""
    examples = "examples" if config.loss.supervised else "preference pairs"
    steps = f"{run.num_steps:,} steps of {config.batch.size}" if run.num_steps else ""
    return (
        f"Train {_trained(config)} of {short(config.model.path)} with {counted}{examples} from "
        f"{short(config.data.name())} by {_loss(config)}" + (f", in {steps}." if steps else ".")
    )


def short(path: str) -> str:
    """Returns the end of a path of this machine; names on the Hub and short paths as they are."""
    # Two parts tell models apart (dpo/model), and a whole path fills the sentence.
    parts = Path(path).parts
    return "/".join(parts[-2:]) if Path(path).is_absolute() else path


def _trained(config: RunConfig) -> str:
    if config.lora is None:
        return "all parameters"
    return f"a LoRA of rank {config.lora.rank}"


def _loss(config: RunConfig) -> str:
    loss = config.loss
    if loss.supervised:
        return "supervised fine-tuning"
    # A mixture names all its losses; newcomers know the plain one as DPO.
    names = " + ".join(loss.type)
    return f"{'DPO (sigmoid)' if loss.type == ('sigmoid',) else names} with β = {loss.beta:g}"


def exported_step(run: RunFiles) -> int | None:
    """Returns the step that `model/` is of; None before the run is finished."""
    exported = (run.summary or {}).get("exported") or {}
    return exported.get("step", run.num_steps if run.summary else None)


def first_and_last(run: RunFiles) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Returns the TEST records that the verdict compares: the first, and that of the export."""
    # The export's own figures where they were measured: rounding may have cost some.
    summed_up = (run.summary or {}).get("test")
    if summed_up is not None:
        return summed_up["before"], summed_up["after"]
    tested, step = run.split("TEST"), exported_step(run)
    if not tested:
        return None
    # The last step is not the exported one where `export.step=best` chose another.
    of_export = [record for record in tested if record["step"] == step]
    return tested[0], (of_export or tested)[-1]


def verdict(run: RunFiles) -> str:
    """Says what came of the run, in one sentence with its numbers."""
    compared = first_and_last(run)
    if compared is None:
        return f"{_so_far(run, _last_step(run))}: {_train_alone(run)}."
    first, last = compared
    begin = f"{_so_far(run, last['step'])}: "
    # The first evaluation of a run, or a run whose best step is the model before training.
    if first["step"] == last["step"]:
        # One evaluation is no comparison.
        return begin + f"TEST loss is {figure(last['loss'])}; nothing is compared yet."
    count = f"{int(last['num_pairs']):,} TEST pairs" if "num_pairs" in last else "TEST pairs"
    said = _accuracy(first, last, count) if "rewards/accuracies" in last else ""
    said += _losses(first, last, alone=not said, count=count)
    passed = [_passed(name, first, last) for name in last if _is_pass_rate(name)]
    return begin + "; ".join([said, *passed]) + _ended(run) + "."


def _last_step(run: RunFiles) -> int:
    return max((record["step"] for record in run.records), default=0)


def _so_far(run: RunFiles, step: int) -> str:
    if run.summary is not None:
        return f"After {step:,} of {run.num_steps:,} {plural('step', run.num_steps)}"
    return f"Under way, after {step:,} of {run.num_steps:,} {plural('step', run.num_steps)}"


def _train_alone(run: RunFiles) -> str:
    train = run.split("TRAIN")
    if not train:
        return "no step has been recorded yet"
    return (
        f"TRAIN loss went from {figure(train[0]['loss'])} to {figure(train[-1]['loss'])}; no pairs "
        "are held out, so nothing here tells how the model does on others"
    )


def _accuracy(first: dict[str, Any], last: dict[str, Any], count: str) -> str:
    before, after = first["rewards/accuracies"], last["rewards/accuracies"]
    said = f"the model predicts the chosen answer for {after:.1%} of {count}"
    if "num_pairs" in last:
        # Wilson's interval: of 200 out of 200 it says 98 to 100%, where a mean ± standard errors
        # would claim certainty.
        likely = share(after * last["num_pairs"], int(last["num_pairs"]))
        said += f" (95% interval {100 * likely.low:.0f} to {100 * likely.high:.0f}%)"
        if likely.low <= _GUESSING <= likely.high:
            said += ", which guessing may reach too"
    return f"{said}, before training for {before:.1%}; "


def _losses(first: dict[str, Any], last: dict[str, Any], alone: bool, count: str) -> str:
    said = f"loss {figure(last['loss'])} after {figure(first['loss'])}"
    return f"on {count} {said}" if alone else said


def _is_pass_rate(name: str) -> bool:
    return name.startswith(PASS_RATE) and not name.endswith(("_low", "_high"))


def _passed(name: str, first: dict[str, Any], last: dict[str, Any]) -> str:
    criterion = name.removeprefix(PASS_RATE)
    before = f", before {first[name]:.0%}" if name in first else ""
    return f"{last[name]:.0%} of the watched answers pass {criterion}{before}"


def _ended(run: RunFiles) -> str:
    stopped = ((run.summary or {}).get("exported") or {}).get("stopped")
    return f"; the run ended early: {stopped}" if stopped else ""
