"""Draws the pictures of docs/results.md: `python -m tests.truth.figures`.

Each is drawn from `docs/results/NAME.json`, which holds the figures; what has no such file is
measured first, and `--again` measures all. Points that the whole program is trained for take about
ten minutes of processor time, and are left out without `--program`; CHES has no others.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdpo.losses import LossConfig
from jaxdpo.losses.against_reference import Divergence
from jaxdpo.storage.files import replacing
from tests.folders import write_model
from tests.truth.bandit import answer_logps, train, write_comparisons
from tests.truth.measured import courtesies_by_beta, displaced_answers, exact_courtesies
from tests.truth.tabular import (
    Comparisons,
    bradley_terry_comparisons,
    expected_reward,
    kl_divergence,
    log_softmax,
    optimal_table,
)
from tests.truth.test_closed_forms import LOG_REFERENCE, REWARDS
from tests.truth.test_overoptimisation import trained_rate

FOLDER = Path(__file__).parents[2] / "docs" / "results"
BETAS = (0.2, 0.35, 0.5, 1.0, 2.0)
PROMPT = (17, 18, 19)
BLUE, GREY, ORANGE = "#2a6fbb", "#8a8a8a", "#d1742f"


def point(log_policy: np.ndarray, log_reference: np.ndarray) -> list[float]:
    """KL in nats and E[r] of a policy over the eight answers."""
    return [kl_divergence(log_policy, log_reference), expected_reward(log_policy, REWARDS)]


def measure_frontier(program: bool) -> dict[str, Any]:
    """Trains at each β in a table, with another divergence too, and through the program if asked.

    Args:
      program: Whether to train through the program.
    """
    exact = bradley_terry_comparisons(REWARDS)
    found: dict[str, Any] = {"betas": BETAS, "reference": LOG_REFERENCE.tolist()}
    tables: tuple[tuple[str, Divergence], ...] = (
        ("table", "reverse_kl"),
        ("js_divergence", "js_divergence"),
    )
    for name, divergence in tables:
        configs = [LossConfig(beta=beta, f_divergence=divergence) for beta in BETAS]
        optima = [optimal_table(config, LOG_REFERENCE, exact) for config in configs]
        found[name] = [point(optimum, LOG_REFERENCE) for optimum in optima]
    if program:
        found |= frontier_by_program(exact)
    return found


def frontier_by_program(exact: Comparisons) -> dict[str, Any]:
    """Trains at each β through the program, with the model's own probabilities as the reference.

    Args:
      exact: The weighted comparisons of the answers.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start, data = write_model(folder / "model"), folder / "compared.jsonl"
        lines = zip(exact.chosen, exact.rejected, exact.weights, strict=True)
        sizes = write_comparisons(data, [(PROMPT, int(a), int(b), float(w)) for a, b, w in lines])
        reference = log_softmax(answer_logps(start, PROMPT, len(REWARDS)))
        points = []
        for beta in BETAS:
            settings = (f"loss.beta={beta}", "training.epochs=300")
            trained = train(start, data, folder / f"{beta}", *settings, *sizes)
            policy = log_softmax(answer_logps(trained, PROMPT, len(REWARDS)))
            points.append(point(policy, reference))
    return {"program": points, "program_reference": reference.tolist()}


def draw_frontier(found: dict[str, Any], axes: Any) -> None:
    """Draws the exact frontier with the trained points on it."""
    for prefix, colour in (("", GREY), ("program_", BLUE)):
        # The program's points have another reference, and so another frontier.
        if f"{prefix}reference" in found:
            reference = np.array(found[f"{prefix}reference"])
            curve = [
                point(log_softmax(reference + REWARDS / beta), reference)
                for beta in np.geomspace(0.08, 20, 200)
            ]
            label = "exact: π* ∝ ref · exp(r/β)" + (", model's own ref" if prefix else "")
            axes.plot(*np.array(curve).T, color=colour, linewidth=1, label=label)
    axes.plot(*np.array(found["table"]).T, "o", color=GREY, label="DPO, trained in a table")
    if "program" in found:
        axes.plot(*np.array(found["program"]).T, "x", color=BLUE, label="DPO, jaxdpo.train, torch")
    js = np.array(found["js_divergence"]).T
    axes.plot(*js, "s", color=ORANGE, markersize=4, label="DPO with js_divergence, in a table")
    for beta, (kl, reward) in zip(found["betas"], found["table"], strict=True):
        axes.annotate(f"β {beta:g}", (kl, reward), (6, -10), textcoords="offset points", fontsize=8)
    axes.set_xlabel("KL(π ‖ ref), nats")
    axes.set_ylabel("E[r]")


def measure_hump(program: bool) -> dict[str, Any]:
    """Trains on the proxy at each β, in a table and through the program if asked.

    Args:
      program: Whether to train through the program.
    """
    betas = (5.0, 2.0, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1)
    rates = [trained_rate(beta) for beta in betas]
    found: dict[str, Any] = {"betas": betas, "table": [list(exact_courtesies(r)) for r in rates]}
    if program:
        with tempfile.TemporaryDirectory() as temporary:
            trained = courtesies_by_beta(Path(temporary), betas)
        found["program"] = [list(each) for each in trained]
    return found


def draw_hump(found: dict[str, Any], axes: Any) -> None:
    """Draws true and proxy score against √KL: closed form, and what was trained."""
    curve = np.array([exact_courtesies(rate) for rate in np.linspace(0.2, 0.985, 200)])
    axes.plot(curve[:, 0], curve[:, 1], color=BLUE, label="true score, exact")
    # The proxy has another unit: shifted to the true score's start, so that both fit one axis.
    shift = curve[0, 1] - curve[0, 2]
    axes.plot(curve[:, 0], curve[:, 2] + shift, "--", color=GREY, label="proxy, exact (shifted)")
    for name, mark in (("table", "o"), ("program", "x")):
        if name in found:
            trained = np.array(found[name])
            axes.plot(trained[:, 0], trained[:, 1], mark, color=BLUE, label=f"DPO, {name}")
    for beta, (distance, true, _) in zip(found["betas"], found["table"], strict=True):
        axes.annotate(f"{beta:g}", (distance, true), (4, 5), textcoords="offset points", fontsize=7)
    axes.set_ylim(-25, curve[:, 2].max() + shift + 3)
    axes.set_xlabel("√KL(π ‖ ref), √nats; numbers are β")
    axes.set_ylabel("score")


def measure_ches(program: bool) -> dict[str, Any]:
    """Trains on thirds of the quickstart's pairs by their CHES scores, which takes the program.

    Args:
      program: Whether to train through the program.
    """
    if not program:
        return {}
    with tempfile.TemporaryDirectory() as temporary:
        found = displaced_answers(Path(temporary))
    return {name: values.round(4).tolist() for name, values in found._asdict().items()}


def draw_ches(found: dict[str, Any], axes: Any) -> None:
    """Draws each pair's change of log π(chosen) against its CHES score."""
    ches, change, group = (np.array(found[name]) for name in ("ches", "change", "group"))
    for number, (name, colour) in enumerate((("low", BLUE), ("middle", GREY), ("high", ORANGE))):
        of_group = group == number
        mean = change[of_group].mean()
        axes.plot(ches[of_group], change[of_group], ".", color=colour, markersize=4)
        label = f"{name} scores: mean {mean:+.2f}"
        axes.plot(ches[of_group].mean(), mean, "D", color=colour, label=label)
    axes.axhline(0, color="k", linewidth=0.5)
    axes.set_xlabel("CHES score before training")
    axes.set_ylabel("change of log π(chosen), nats a word")


Measure = Callable[[bool], dict[str, Any]]
Draw = Callable[[dict[str, Any], Any], None]
PICTURES: dict[str, tuple[Measure, Draw]] = {
    "frontier": (measure_frontier, draw_frontier),
    "hump": (measure_hump, draw_hump),
    "ches": (measure_ches, draw_ches),
}


def measure(name: str, program: bool) -> None:
    """Measures the figures of a picture and writes their file, if there are any.

    Args:
      name: Name of the picture.
      program: Whether to train through the program.
    """
    measured = PICTURES[name][0](program)
    if measured:
        with replacing(FOLDER / f"{name}.json") as file:
            json.dump(measured, file)


def draw(name: str) -> None:
    """Writes `docs/results/NAME.svg` if its figures are there; the same bytes for the same ones."""
    import matplotlib
    from matplotlib.figure import Figure

    path = FOLDER / f"{name}.json"
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    with matplotlib.rc_context({"svg.hashsalt": "jaxdpo", "svg.fonttype": "none"}):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.subplots()
        PICTURES[name][1](found, axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
        with replacing(FOLDER / f"{name}.svg", "wb") as file:
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def main() -> None:
    """Draws the pictures that the arguments name, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PICTURES)}; default: all")
    parser.add_argument("--again", action="store_true", help="measure what has been measured")
    parser.add_argument("--program", action="store_true", help="train through the program too")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or PICTURES:
        if arguments.again or not (FOLDER / f"{name}.json").exists():
            measure(name, arguments.program)
        draw(name)


if __name__ == "__main__":
    main()
