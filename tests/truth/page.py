"""Makes docs/results.md: `python -m tests.truth.page [--runs runs/use_cases]`.

The page is `docs/results/page.md.j2` with tables of the use cases' results. Those are the files
`docs/results/use_cases/NAME-SEED.json`, each a run's `result.json`; `--runs` takes them from run
folders first. The other pictures come from `python -m tests.truth.figures`.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2

from jaxdpo.evaluation.agreement import Estimate, share
from jaxdpo.storage.files import replacing
from jaxdpo.use_cases.cases import CASES, GROUPS
from jaxdpo.use_cases.report import (
    IN_DOMAIN_GREEDY,
    SHIFTED,
    bars_of,
    colour,
    decrease,
    found,
    markdown,
    minutes,
)
from jaxdpo.use_cases.task import Domain

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results" / "use_cases"
# A use case's name and the result of one of its seeds.
Seed = tuple[str, dict[str, Any]]
# Measures of quality that DPO must not spoil; the first is what it is for.
GUARDED = ("facts kept", "length as asked", "well formed", "no repetition")


def take_results(runs: Path) -> None:
    """Copies the results of finished seeds from run folders."""
    for path in sorted(runs.glob("*/seed_*/result.json")):
        case, seed = path.parent.parent.name, path.parent.name.removeprefix("seed_")
        if case in GROUPS["systematic"]:
            with replacing(RESULTS / f"{case}-{seed}.json") as file:
                json.dump(json.loads(path.read_text(encoding="utf-8")), file)


def read_results() -> list[Seed]:
    """Reads the results in the order of the use cases, then of the seeds."""
    seeds = [
        (path.stem.rpartition("-")[0], json.loads(path.read_text(encoding="utf-8")))
        for path in RESULTS.glob("*.json")
    ]
    order = GROUPS["systematic"]
    return sorted(seeds, key=lambda one: (order.index(one[0]), one[1]["seed"]))


def shown(estimate: Estimate) -> str:
    """Returns a share with its interval, in hundredths: `81.0% (75 to 86)`."""
    value, low, high = (100 * part for part in estimate)
    return f"{value:.1f}% ({low:.0f} to {high:.0f})"


def failures(
    result: dict[str, Any], model: str, domain: Domain = "in-domain", temperature: float = 1.0
) -> Estimate:
    """The share of answers that fail, with Wilson's interval."""
    failed = found(result, model, domain, temperature)["failed"]
    return share(sum(failed), len(failed))


def failure_table(seeds: Iterable[Seed]) -> str:
    """The table of failures on TEST at temperature 1."""
    seeds = list(seeds)
    bars = bars_of(seeds[0][1])
    rows: list[tuple[str, ...]] = [("use case", "seed", *bars)]
    for name, result in seeds:
        rates = (shown(failures(result, model)) for model in bars)
        rows.append((CASES[name].title, str(result["seed"]), *rates))
    return markdown(rows)


def places_table(seeds: Iterable[Seed]) -> str:
    """The table of wrong places, of a hundred, on TEST at temperature 1."""
    seeds = list(seeds)
    bars = bars_of(seeds[0][1])
    rows: list[tuple[str, ...]] = [("use case", "seed", *bars)]
    for name, result in seeds:
        wrong = (1 - found(result, model)["quality"]["places right"] for model in bars)
        rows.append((CASES[name].title, str(result["seed"]), *(f"{100 * w:.1f}" for w in wrong)))
    return markdown(rows)


def decrease_table(seeds: Iterable[Seed]) -> str:
    """The table of decreases of failures from SFT on, beside the published ones."""
    ways = [way.label for way in CASES[GROUPS["systematic"][0]].ways]
    rows: list[tuple[str, ...]] = [("use case", "seed", *ways, "published for DPO", "minutes")]
    for name, result in seeds:
        before, after = CASES[name].published
        fewer = (shown(decrease(result, model=way)) for way in ways)
        spent = f"{minutes(result, 'cpu'):.1f}"
        published = f"{1 - after / before:.0%}"
        rows.append((CASES[name].title, str(result["seed"]), *fewer, published, spent))
    return markdown(rows)


def quality_table(seeds: Iterable[Seed]) -> str:
    """The table of what DPO must leave as it is, and of other conditions."""
    heading = ("use case", "seed", "model", *GUARDED, "fail, greedy", "fail, shifted")
    rows: list[tuple[str, ...]] = [heading]
    for name, result in seeds:
        for model in ("SFT", *(way.label for way in CASES[name].ways)):
            quality = found(result, model)["quality"]
            kept = (f"{100 * quality[measure]:.1f}%" for measure in GUARDED)
            other = (IN_DOMAIN_GREEDY, SHIFTED)
            others = (f"{100 * failures(result, model, *where).value:.1f}%" for where in other)
            rows.append((CASES[name].title, str(result["seed"]), model, *kept, *others))
    return markdown(rows)


def draw_chart(seeds: list[Seed]) -> None:
    """Writes `use_cases.svg`: a panel for each task, a bar for each model, 95% intervals."""
    import matplotlib
    from matplotlib.figure import Figure

    by_case: dict[str, list[dict[str, Any]]] = {}
    for name, result in seeds:
        by_case.setdefault(name, []).append(result)
    with matplotlib.rc_context({"svg.hashsalt": "jaxdpo", "svg.fonttype": "none"}):
        figure = Figure(figsize=(2.9 * len(by_case) + 0.6, 3.4), layout="constrained")
        panels = figure.subplots(1, len(by_case), squeeze=False).flat
        for axes, (name, results) in zip(panels, by_case.items(), strict=True):
            for place, model in enumerate(bars_of(results[0])):
                # All seeds' answers together: the seeds are drawn alike.
                failed = [each for one in results for each in found(one, model)["failed"]]
                value, low, high = (100 * x for x in share(sum(failed), len(failed)))
                axes.bar(place, value, color=colour(model))
                axes.errorbar(place, value, [[value - low], [high - value]], color="k", capsize=2)
                axes.annotate(f"{value:.0f}%", (place, high), (0, 3), textcoords="offset points",
                              ha="center", fontsize=8)  # fmt: skip
            names = bars_of(results[0])
            axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
            axes.set_title(CASES[name].title, fontsize=9)
            axes.set_ylim(0, 112)
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel("TEST answers with a wrong place, %")
        with replacing(DOCS / "results" / "use_cases.svg", "wb") as file:
            metadata = {"Date": None, "Creator": None}
            figure.savefig(file, format="svg", metadata=metadata)


def render(seeds: list[Seed]) -> str:
    """Returns the page, without the parts that nothing has been measured for."""
    environment = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    template = (DOCS / "results" / "page.md.j2").read_text(encoding="utf-8")
    tables = (failure_table, places_table, decrease_table, quality_table)
    return environment.from_string(template).render(
        tables={made.__name__: made(seeds) for made in tables} if seeds else {},
    )


def main() -> None:
    """Makes the page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="folder of use cases whose results are taken")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if arguments.runs is not None:
        take_results(arguments.runs)
    seeds = read_results()
    if seeds:
        draw_chart(seeds)
    with replacing(DOCS / "results.md") as file:
        file.write(render(seeds))


if __name__ == "__main__":
    main()
