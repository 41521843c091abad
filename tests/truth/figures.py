"""Draws the pictures of docs/results.md: `python -m tests.truth.figures`.

Each is drawn from `docs/results/NAME.json`, which holds the figures; what has no such file is
measured first (about five minutes of processor time for all three), and `--again` measures all.
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
    bradley_terry_comparisons,
    expected_reward,
    kl_divergence,
    log_softmax,
    optimal_table,
)
from tests.truth.test_closed_forms import REWARDS

FOLDER = Path(__file__).parents[2] / "docs" / "results"
BETAS = (0.2, 0.35, 0.5, 1.0, 2.0)
PROMPT = (17, 18, 19)
BLUE, GREY, ORANGE = "#2a6fbb", "#8a8a8a", "#d1742f"


def point(log_policy: np.ndarray, log_reference: np.ndarray) -> list[float]:
    """KL in nats and E[r] of a policy over the eight answers."""
    return [kl_divergence(log_policy, log_reference), expected_reward(log_policy, REWARDS)]


def measure_frontier() -> dict[str, Any]:
    """Trains at each β in a table and through the program, and another divergence in a table."""
    exact = bradley_terry_comparisons(REWARDS)
    found: dict[str, Any] = {"betas": BETAS}
    tables: tuple[tuple[str, Divergence], ...] = (
        ("table", "reverse_kl"),
        ("js_divergence", "js_divergence"),
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start, data = write_model(folder / "model"), folder / "compared.jsonl"
        lines = zip(exact.chosen, exact.rejected, exact.weights, strict=True)
        sizes = write_comparisons(data, [(PROMPT, int(a), int(b), float(w)) for a, b, w in lines])
        # The model's own probabilities are the reference of all points: one curve holds them.
        reference = log_softmax(answer_logps(start, PROMPT, len(REWARDS)))
        for name, divergence in tables:
            configs = [LossConfig(beta=beta, f_divergence=divergence) for beta in BETAS]
            found[name] = [
                point(optimal_table(config, reference, exact), reference) for config in configs
            ]
        found["program"] = []
        for beta in BETAS:
            settings = (f"loss.beta={beta}", "training.epochs=300")
            trained = train(start, data, folder / f"{beta}", *settings, *sizes)
            policy = log_softmax(answer_logps(trained, PROMPT, len(REWARDS)))
            found["program"].append(point(policy, reference))
    found["reference"] = reference.tolist()
    return found


def draw_frontier(found: dict[str, Any], axes: Any) -> None:
    """Draws the exact frontier with the trained points on it."""
    reference = np.array(found["reference"])
    curve = [
        point(log_softmax(reference + REWARDS / beta), reference)
        for beta in np.geomspace(0.08, 20, 200)
    ]
    axes.plot(*np.array(curve).T, color=GREY, label="exact: π* ∝ ref · exp(r/β)")
    axes.plot(*np.array(found["table"]).T, "o", color=BLUE, fillstyle="none", label="DPO, table")
    axes.plot(*np.array(found["program"]).T, "x", color=BLUE, label="DPO, jaxdpo.train, torch")
    js = np.array(found["js_divergence"]).T
    axes.plot(*js, "s", color=ORANGE, markersize=4, label="DPO with js_divergence")
    for beta, (kl, reward) in zip(found["betas"], found["program"], strict=True):
        axes.annotate(f"β {beta:g}", (kl, reward), (6, -10), textcoords="offset points", fontsize=8)
    axes.set_xlabel("KL(π ‖ ref), nats")
    axes.set_ylabel("E[r]")


def measure_hump() -> dict[str, Any]:
    """Trains on the proxy through the program."""
    betas = (5.0, 2.0, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1)
    with tempfile.TemporaryDirectory() as temporary:
        found = courtesies_by_beta(Path(temporary), betas)
    return {"betas": betas, "program": [list(each) for each in found]}


def draw_hump(found: dict[str, Any], axes: Any) -> None:
    """Draws true and proxy score against √KL: closed form, and what was trained."""
    curve = np.array([exact_courtesies(rate) for rate in np.linspace(0.2, 0.985, 200)])
    trained = np.array(found["program"])
    axes.plot(curve[:, 0], curve[:, 1], color=BLUE, label="true score, exact")
    axes.plot(trained[:, 0], trained[:, 1], "x", color=BLUE, label="true score, trained")
    # The proxy has another unit: shifted to the true score's start, so that both fit one axis.
    shift = curve[0, 1] - curve[0, 2]
    axes.plot(curve[:, 0], curve[:, 2] + shift, "--", color=GREY, label="proxy, exact (shifted)")
    axes.plot(trained[:, 0], trained[:, 2] + shift, "+", color=GREY, label="proxy, trained")
    for beta, (distance, true, _) in zip(found["betas"], found["program"][1:], strict=True):
        axes.annotate(f"{beta:g}", (distance, true), (4, 5), textcoords="offset points", fontsize=7)
    axes.set_ylim(min(trained[:, 1].min(), -25), curve[:, 2].max() + shift + 3)
    axes.set_xlabel("√KL(π ‖ ref), √nats; numbers are β")
    axes.set_ylabel("score")


def measure_ches() -> dict[str, Any]:
    """Trains on thirds of the quickstart's pairs by their CHES scores."""
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


PICTURES: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any], Any], None]]] = {
    "frontier": (measure_frontier, draw_frontier),
    "hump": (measure_hump, draw_hump),
    "ches": (measure_ches, draw_ches),
}


def figures_of(name: str, again: bool) -> dict[str, Any]:
    """The figures of a picture, from its file, or measured and written there."""
    path = FOLDER / f"{name}.json"
    if again or not path.exists():
        measured = PICTURES[name][0]()
        with replacing(path) as file:
            json.dump(measured, file)
    return json.loads(path.read_text(encoding="utf-8"))


def draw(name: str, found: dict[str, Any]) -> None:
    """Writes `docs/results/NAME.svg`; the same bytes for the same figures."""
    import matplotlib
    from matplotlib.figure import Figure

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
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or PICTURES:
        draw(name, figures_of(name, arguments.again))


if __name__ == "__main__":
    main()
