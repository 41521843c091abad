"""The evidence as a table in Markdown and as a chart."""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdpo.evaluation.agreement import Estimate
from jaxdpo.evaluation.statistics import fewer_failures, pair_up
from jaxdpo.storage.files import replacing
from jaxdpo.use_cases.task import Domain, UseCase

# Results of each seed, by use case.
Results = Mapping[str, Sequence[dict[str, Any]]]
# A use case with the result of one seed.
Seed = tuple[UseCase, dict[str, Any]]

BARS = ("SFT", "SFT on best", "best of 4", "DPO")
# Domain and temperature of the further columns.
IN_DOMAIN_GREEDY: tuple[Domain, float] = ("in-domain", 0.0)
SHIFTED: tuple[Domain, float] = ("shifted", 1.0)


def write_report(folder: Path, cases: Mapping[str, UseCase], results: Results) -> str:
    """Writes `results.md` and the chart as `results.png` and `.svg`.

    Args:
      folder: Where to.
      cases: The use cases, by name.
      results: Results of each seed, by use case.

    Returns:
      The tables.
    """
    # By use case, then by seed: the order of the tables.
    flat = [(cases[name], result) for name, of_seeds in results.items() for result in of_seeds]
    tables = f"{markdown(failure_rows(flat))}\n{markdown(other_rows(flat))}"
    today = datetime.date.today().isoformat()
    with replacing(folder / "results.md") as file:
        file.write(f"{tables}\nMade on {today}, {os.cpu_count()} cores, {processor()}.\n")
    write_chart(folder, cases, results)
    return tables


def write_chart(folder: Path, cases: Mapping[str, UseCase], results: Results) -> None:
    """Writes `results.png` and `results.svg`; the same bytes for the same figures.

    Args:
      folder: Where to.
      cases: The use cases, by name.
      results: Results of each seed, by use case.
    """
    import matplotlib

    # A date or a random id in the file would make a change of every run.
    nameless = {"png": {}, "svg": {"Date": None, "Creator": None}}
    with matplotlib.rc_context({"svg.hashsalt": "jaxdpo", "svg.fonttype": "none"}):
        figure = chart(cases, results)
        for form, metadata in nameless.items():
            with replacing(folder / f"results.{form}", "wb") as file:
                figure.savefig(file, format=form, dpi=110, metadata=metadata)


def failure_rows(flat: Sequence[Seed]) -> list[tuple[str, ...]]:
    """Returns each seed's failures at temperature 1, beside those that were published."""
    rows: list[tuple[str, ...]] = [("use case", "seed", *BARS, "fewer (95%)", "published")]
    for case, result in flat:
        before, after = case.published
        rates = (f"{rate(result, model):.1f}%" for model in BARS)
        published = f"{before:g} → {after:g}%: {1 - after / before:.0%}"
        rows.append((case.title, str(result["seed"]), *rates, percent(decrease(result)), published))
    return rows


def other_rows(flat: Sequence[Seed]) -> list[tuple[str, ...]]:
    """Returns each seed's other measures, of the supervised model → after DPO."""
    heading = ("use case", "seed", "quality", "greedy", "shifted", "fewer shifted (95%)", "cost")
    rows: list[tuple[str, ...]] = [heading]
    for case, result in flat:
        sft, dpo = (found(result, model)["quality"] for model in ("SFT", "DPO"))
        quality = (f"{name} {100 * sft[name]:.1f} → {100 * dpo[name]:.1f}%" for name in sft)
        changes = (
            f"{rate(result, 'SFT', *where):.1f} → {rate(result, 'DPO', *where):.1f}%"
            for where in (IN_DOMAIN_GREEDY, SHIFTED)
        )
        cost = (
            f"{minutes(result, 'wall'):.1f} min, {minutes(result, 'cpu'):.1f} of processors, "
            f"{result['memory_gib']:.1f} GiB"
        )
        shifted = percent(decrease(result, "shifted"))
        rows.append((case.title, str(result["seed"]), "; ".join(quality), *changes, shifted, cost))
    return rows


def processor() -> str:
    """Returns the processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def minutes(result: dict[str, Any], clock: str) -> float:
    """Returns the minutes of a seed, from random weights to the last answer."""
    return sum(stage[clock] for stage in result["seconds"].values()) / 60


def found(
    result: dict[str, Any], model: str, domain: Domain = "in-domain", temperature: float = 1.0
) -> dict[str, Any]:
    """Returns the measures of a model.

    Args:
      result: Result of a seed.
      model: Name of the model.
      domain: Domain of the prompts.
      temperature: Of the sampling.
    """
    wanted = {"domain": domain, "temperature": temperature, "model": model}
    return next(one for one in result["measured"] if wanted.items() <= one.items())


def rate(
    result: dict[str, Any], model: str, domain: Domain = "in-domain", temperature: float = 1.0
) -> float:
    """Computes failures in a hundred.

    Args:
      result: Result of a seed.
      model: Name of the model.
      domain: Domain of the prompts.
      temperature: Of the sampling.
    """
    failed = found(result, model, domain, temperature)["failed"]
    return 100 * sum(failed) / len(failed)


def decrease(result: dict[str, Any], domain: Domain = "in-domain") -> Estimate:
    """Computes the share by which DPO's failures are fewer than SFT's, at temperature 1."""
    # Prompt by prompt: both models answered the same ones, and resampling prompts keeps the pairs.
    sft, dpo = (
        [not failed for failed in found(result, model, domain)["failed"]]
        for model in ("SFT", "DPO")
    )
    return fewer_failures(pair_up(sft, dpo))


def percent(estimate: Estimate) -> str:
    """Returns an estimate such as `81% (75 to 86)`."""
    value, low, high = (100 * part for part in estimate)
    return f"{value:.0f}% ({low:.0f} to {high:.0f})"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown, its first row the heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def chart(cases: Mapping[str, UseCase], results: Results) -> Any:
    """Draws a panel for each use case: the failures of each model, a dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.9 * len(results) + 0.6, 3.2), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False).flat
    for axes, (name, of_seeds) in zip(panels, results.items(), strict=True):
        rates = [[rate(result, model) for result in of_seeds] for model in BARS]
        means = [sum(of_model) / len(of_model) for of_model in rates]
        bars = axes.bar(BARS, means, color=("#8a8a8a", "#b9c4d0", "#b9c4d0", "#2a6fbb"))
        axes.bar_label(bars, [f"{mean:.1f}%" for mean in means], padding=3)
        for place, of_model in enumerate(rates):
            axes.plot([place] * len(of_model), of_model, "k.", markersize=4)
        axes.set_title(f"{cases[name].title}\n{cases[name].failure}", fontsize=9)
        axes.tick_params(axis="x", labelrotation=30, labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(0, 1.2 * max(*(max(of_model) for of_model in rates), 1.0))
    figure.axes[0].set_ylabel("failures on TEST, %")
    return figure
