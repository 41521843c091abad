"""Draws the pictures of docs/results.md: `python -m tests.truth.figures`.

Each is drawn from `docs/results/NAME.json`, which holds the figures; what has no such file is
measured first, and `--again` measures all.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdpo.losses import LossConfig
from jaxdpo.losses.against_reference import Divergence
from jaxdpo.storage.files import replacing
from tests.truth.courtesies import courteous
from tests.truth.tabular import (
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
BLUE, GREY, ORANGE = "#2a6fbb", "#8a8a8a", "#d1742f"


def point(log_policy: np.ndarray) -> list[float]:
    """KL in nats and E[r] of a policy over the eight answers."""
    return [kl_divergence(log_policy, LOG_REFERENCE), expected_reward(log_policy, REWARDS)]


def measure_frontier() -> dict[str, Any]:
    """Trains tables at each β, by DPO and with another divergence."""
    exact = bradley_terry_comparisons(REWARDS)
    found: dict[str, Any] = {"betas": BETAS}
    tables: tuple[tuple[str, Divergence], ...] = (
        ("table", "reverse_kl"),
        ("js_divergence", "js_divergence"),
    )
    for name, divergence in tables:
        configs = [LossConfig(beta=beta, f_divergence=divergence) for beta in BETAS]
        optima = [optimal_table(config, LOG_REFERENCE, exact) for config in configs]
        found[name] = [point(optimum) for optimum in optima]
    return found


def draw_frontier(found: dict[str, Any], axes: Any) -> None:
    """Draws the exact frontier with the trained points on it."""
    betas = np.geomspace(0.08, 20, 200)
    curve = [point(log_softmax(LOG_REFERENCE + REWARDS / beta)) for beta in betas]
    axes.plot(*np.array(curve).T, color=GREY, label="exact: π* ∝ ref · exp(r/β)")
    axes.plot(*np.array(found["table"]).T, "o", color=BLUE, label="DPO, trained")
    js = np.array(found["js_divergence"]).T
    axes.plot(*js, "s", color=ORANGE, markersize=4, label="DPO with js_divergence, trained")
    for beta, (kl, reward) in zip(found["betas"], found["table"], strict=True):
        axes.annotate(f"β {beta:g}", (kl, reward), (6, -10), textcoords="offset points", fontsize=8)
    axes.set_xlabel("KL(π ‖ ref), nats")
    axes.set_ylabel("E[r]")


def measure_hump() -> dict[str, Any]:
    """Trains on the proxy at each β."""
    betas = (5.0, 2.0, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1)
    return {"betas": betas, "table": [list(courteous(trained_rate(beta))) for beta in betas]}


def draw_hump(found: dict[str, Any], axes: Any) -> None:
    """Draws true and proxy score against √KL: closed form, and what was trained."""
    curve = np.array([courteous(rate) for rate in np.linspace(0.2, 0.985, 200)])
    axes.plot(curve[:, 0], curve[:, 1], color=BLUE, label="true score, exact")
    # The proxy has another unit: shifted to the true score's start, so that both fit one axis.
    shift = curve[0, 1] - curve[0, 2]
    axes.plot(curve[:, 0], curve[:, 2] + shift, "--", color=GREY, label="proxy, exact (shifted)")
    trained = np.array(found["table"])
    axes.plot(trained[:, 0], trained[:, 1], "o", color=BLUE, label="true score, DPO trained")
    for beta, (distance, true, _) in zip(found["betas"], found["table"], strict=True):
        offset = (4, 5)
        axes.annotate(f"{beta:g}", (distance, true), offset, textcoords="offset points",
                      fontsize=7, annotation_clip=True)  # fmt: skip
    # The smallest β lie far below: what is shown is the hump.
    axes.set_ylim(-6, curve[:, 2].max() + shift + 1)
    axes.set_xlabel("√KL(π ‖ ref), √nats; numbers are β")
    axes.set_ylabel("score")


Measure = Callable[[], dict[str, Any]]
Draw = Callable[[dict[str, Any], Any], None]
PICTURES: dict[str, tuple[Measure, Draw]] = {
    "frontier": (measure_frontier, draw_frontier),
    "hump": (measure_hump, draw_hump),
}


def draw(name: str) -> None:
    """Writes `docs/results/NAME.svg`; the same bytes for the same figures."""
    import matplotlib
    from matplotlib.figure import Figure

    path = FOLDER / f"{name}.json"
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
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or PICTURES:
        path = FOLDER / f"{name}.json"
        if arguments.again or not path.exists():
            measured = PICTURES[name][0]()
            with replacing(path) as file:
                json.dump(measured, file)
        draw(name)


if __name__ == "__main__":
    main()
