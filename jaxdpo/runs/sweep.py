"""A grid of runs on one load of model, data and reference: `--sweep loss.beta=0.05,0.1,0.3 …`.

Each setting is a run of its own, in a folder of its own below `training.folder`, as if it had been
started alone; so a sweep that was cut off continues, and a setting that is finished is not run
again. Settings that train adapters and differ in numbers alone are trained at once. It ends with
`sweep.json` and `sweep.png`, the TEST metrics by setting.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxdpo.cli.arguments import Arguments
from jaxdpo.cli.console import Reporter
from jaxdpo.cli.settings import with_overrides
from jaxdpo.cli.yaml_values import InvalidYaml, load_yaml
from jaxdpo.config import RunConfig, flat, load_config
from jaxdpo.data.tokenization.load_pairs import load_pairs
from jaxdpo.devices.sharding import make_mesh
from jaxdpo.errors import UserError
from jaxdpo.runs.fit import RunResult, fit
from jaxdpo.runs.fit_together import fit_together
from jaxdpo.runs.folder import report_path
from jaxdpo.runs.processes import joined
from jaxdpo.runs.report.comparison import write_comparison
from jaxdpo.runs.report.sweep import recommended
from jaxdpo.runs.setup import load_start
from jaxdpo.storage.files import replacing
from jaxdpo.training.multi_run import NUMBERS

# What all settings of a sweep share.
_SHARED = ("model", "data", "mesh", "training.folder")
_SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "kl", "logps/chosen_per_token")

Setting = dict[str, Any]


def sweep_command(given: Arguments) -> None:
    """Runs the sweep that a command line asks for.

    Raises:
      UserError: For a mistake in it, and for whatever a run refuses.
    """
    at_once, rest = parse_at_once(given.tail or [])
    axes = parse_axes(rest)
    beside = {"--sweep": given.tail or []}
    with joined(lambda: load_config(given.file, given.overrides), beside) as config:
        sweep(config, axes, at_once)


def parse_axes(arguments: Sequence[str]) -> dict[str, list[Any]]:
    """Reads `["loss.beta=0.1,0.3"]` as `{"loss.beta": [0.1, 0.3]}`.

    Raises:
      UserError: For an axis that is no field with values, stands twice, or is shared by all runs.
    """
    axes: dict[str, list[Any]] = {}
    for argument in arguments:
        field, equals, text = argument.partition("=")
        if not equals or not text or field.startswith("-"):
            raise UserError(
                f"{argument!r}: after --sweep, write section.field=value,value,…; overrides for "
                "all settings stand before it"
            )
        if field in axes:
            raise UserError(f"--sweep names {field} twice; write all its values after one =")
        if any(field == shared or field.startswith(shared + ".") for shared in _SHARED):
            raise UserError(
                f"--sweep {field}: the settings of a sweep share {', '.join(_SHARED)}; start a run "
                "for each value instead"
            )
        try:
            # As a list in YAML, so that numbers, null and names are read as everywhere else.
            axes[field] = load_yaml(f"[{text}]")
        except InvalidYaml:
            raise UserError(f"{argument!r}: the values are not valid YAML; quote them") from None
    if not axes:
        raise UserError("--sweep needs at least one section.field=value,value,…")
    return axes


def parse_at_once(arguments: Sequence[str]) -> tuple[int | None, list[str]]:
    """Takes `at_once=N` out of a sweep's arguments.

    Raises:
      UserError: If N is no number above 0.
    """
    at_once, axes = None, []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if name != "at_once":
            axes.append(argument)
        elif equals and text.isdecimal() and int(text) > 0:
            at_once = int(text)
        else:
            raise UserError(f"{argument!r}: write at_once=N, how many adapters train at once")
    return at_once, axes


def settings_of(axes: dict[str, list[Any]]) -> list[Setting]:
    """Lists every combination of the axes' values, the last axis changing fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def name_of(setting: Setting) -> str:
    """Returns what a setting and its folder are called: `loss.beta=0.1,lora.rank=8`."""
    said = (f"{field}={json.dumps(value)}" for field, value in setting.items())
    return ",".join(said).replace('"', "").replace("/", "_").replace(" ", "")


def groups_of(configs: Sequence[RunConfig], at_once: int | None = None) -> list[list[int]]:
    """Groups the runs that train at once: adapters whose configurations differ in numbers alone.

    Args:
      configs: The runs.
      at_once: Most runs of a group; None for any number.

    Returns:
      Indices into `configs`, in order within a group.
    """
    groups: list[list[int]] = []
    shared: list[dict[str, Any]] = []
    for number, config in enumerate(configs):
        one = {
            field: value
            for field, value in flat(config).items()
            if field not in NUMBERS and field != "training.folder"
        }
        for group, common in zip(groups, shared, strict=True):
            fits = at_once is None or len(group) < at_once
            # A value that is not given is a default that other code resolves.
            given = all(
                (flat(config)[name] is None) == (flat(configs[group[0]])[name] is None)
                for name in NUMBERS
            )
            # Full fine-tuning would need the parameters once for each setting; adapters are small.
            if config.lora is not None and one == common and fits and given:
                group.append(number)
                break
        else:
            groups.append([number])
            shared.append(one)
    return groups


def sweep(
    base: RunConfig, axes: dict[str, list[Any]], at_once: int | None = None
) -> list[dict[str, Any]]:
    """Runs every setting.

    >>> sweep(load_config("dpo.yaml"), {"loss.beta": [0.05, 0.1, 0.3]})  # doctest: +SKIP

    Args:
      base: The run without the sweep; each setting has a folder of its own below this one's.
      axes: Values by field, as `{"loss.beta": [0.1, 0.3]}`.
      at_once: Most adapters trained at once; None for all that can be.

    Returns:
      For each setting `{"setting", "folder", "before", "after"}`, the latter two TEST metrics.

    Raises:
      UserError: As `load_config` and `fit` do; every setting is checked before the first is run.
    """
    # All are made before the first is run: a mistake in the last one costs no training.
    settings = settings_of(axes)
    configs = [_config_of(base, setting) for setting in settings]
    if len({config.loss.supervised for config in configs}) > 1:
        raise UserError(
            "--sweep loss.type: sft alone reads no rejected completions, so it shares no data with "
            "other losses; run it by itself"
        )
    folder = Path(base.training.folder)
    reporter = Reporter(quiet=jax.process_index() != 0)
    first = configs[0]
    bases = {"full" if config.lora is None else config.lora.base for config in configs}
    # Runs on different bases make theirs of one in full.
    shared = first if len(bases) == 1 else first.model_copy(update={"lora": None})
    # Model, pairs and reference log-probs are the same for all settings, and are loaded once.
    policy = load_start(shared, None, make_mesh(first.mesh))
    folder.mkdir(parents=True, exist_ok=True)
    pairs = load_pairs(
        first.data, policy.chat, folder / "rejects.jsonl", supervised=first.loss.supervised
    )
    results: dict[int, RunResult] = {}
    for group in groups_of(configs, at_once):
        for number in group:
            reporter.say(f"setting {number + 1} of {len(settings)}: {name_of(settings[number])}")
        if len(group) == 1:
            trained = [fit(configs[group[0]], policy, pairs)]
        else:
            trained = fit_together([configs[number] for number in group], policy, pairs)
        results |= dict(zip(group, trained, strict=True))
    rows = []
    for number, (setting, config) in enumerate(zip(settings, configs, strict=True)):
        tested = results[number].summary["test"] or {"before": None, "after": None}
        rows.append({"setting": setting, "folder": config.training.folder, **tested})
    if jax.process_index() == 0:
        _write(rows, folder, reporter)
    return rows


def _write(rows: list[dict[str, Any]], folder: Path, reporter: Reporter) -> None:
    """Writes and shows the settings side by side, and the one that TEST recommends."""
    with replacing(folder / "sweep.json") as file:
        json.dump(rows, file, indent=1)
    page = report_path(folder)
    write_comparison([Path(row["folder"]) for row in rows], page)
    if rows[0]["after"] is not None:
        _show(reporter, rows)
        _plot(rows, folder / "sweep.png")
        reporter.say(recommended(rows))
    reporter.say(f"{folder / 'sweep.json'} and sweep.png hold the same; {page} compares all")


def _config_of(base: RunConfig, setting: Setting) -> RunConfig:
    folder = str(Path(base.training.folder) / name_of(setting))
    changes = {**setting, "training.folder": folder}
    return with_overrides(base, [f"{key}={json.dumps(value)}" for key, value in changes.items()])


def _shown(rows: list[dict[str, Any]]) -> list[str]:
    return [name for name in _SHOWN if all(name in row["after"] for row in rows)]


def _show(reporter: Reporter, rows: list[dict[str, Any]]) -> None:
    names = _shown(rows)
    table = [
        (*row["setting"].values(), *(f"{row['after'][name]:.4f}" for name in names)) for row in rows
    ]
    reporter.table("TEST pairs after training", (*rows[0]["setting"], *names), table)


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws a panel for each metric, a bar for each setting, and the start as a line."""
    from matplotlib.figure import Figure

    names = _shown(rows)
    # Wide enough for four digits on each axis, and a line of text for each setting.
    size = (3.8 * len(names) + 3.0, 0.5 * len(rows) + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    labels = [name_of(row["setting"]) for row in rows]
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False).flat
    for axes, name in zip(panels, names, strict=True):
        values = [row["after"][name] for row in rows]
        axes.barh(labels, values, xerr=_to_the_ends(rows, name), capsize=3, color="#2f7fd1")
        axes.axvline(rows[0]["before"][name], color="black", linewidth=1, linestyle=":")
        axes.set_title(f"{name}, dotted: before", fontsize=12)
        axes.tick_params(labelsize=11)
        axes.grid(axis="x", alpha=0.3)
    # Bars are drawn upwards, and the settings are to stand in the order of the table.
    figure.axes[0].invert_yaxis()
    with replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)


def _to_the_ends(rows: list[dict[str, Any]], name: str) -> list[list[float]] | None:
    """Returns how far the ends of a metric's 95% intervals are; None where it has none."""
    records = [row["after"] for row in rows]
    if any(f"{name}_low" not in record for record in records):
        return None
    # A share's interval reaches further inwards than out.
    return [
        [record[name] - record[f"{name}_low"] for record in records],
        [record[f"{name}_high"] - record[name] for record in records],
    ]
