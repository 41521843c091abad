"""The settings of a sweep side by side, and which of them the TEST pairs recommend."""

import json
from typing import Any

from jaxdpo.pages.cells import Table, figure, interval, number

_SHOWN = ("rewards/accuracies", "loss", "rewards/margins", "kl", "logps/chosen_per_token")


def sweep_table(rows: list[dict[str, Any]]) -> Table:
    """Returns a row for each setting, the recommended one named in the caption.

    Args:
      rows: The content of sweep.json.
    """
    # A setting without TEST figures, whose run failed or has no TEST pairs, can't be compared.
    tested = [row for row in rows if row.get("after")]
    shown = [name for name in _SHOWN if all(name in row["after"] for row in tested)]
    cells = [
        (
            *(json.dumps(value, ensure_ascii=False) for value in row["setting"].values()),
            *(_cell(row["after"], name) for name in shown),
        )
        for row in tested
    ]
    header = (*(rows[0]["setting"] if rows else ()), *shown)
    return Table(recommended(rows), header, cells, sortable=True)


def _cell(metrics: dict[str, Any], name: str) -> Any:
    if f"{name}_low" not in metrics:
        return number(metrics[name])
    return interval(metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"])


def recommended(rows: list[dict[str, Any]]) -> str:
    """Names the setting that predicts most TEST pairs, and says whether others may be as good.

    Runs without rewards (supervised fine-tuning) are ranked by their loss.

    Args:
      rows: The content of sweep.json.
    """
    tested = [row for row in rows if row.get("after")]
    if not tested:
        return "No setting is recommended: no pairs were held out to compare them on."
    ranked = "rewards/accuracies" in tested[0]["after"]
    metric = "rewards/accuracies" if ranked else "loss"
    # Of settings that are equally accurate the one with the lower loss is surer of it.
    best = max(tested, key=lambda row: (_rank(row, metric), -row["after"]["loss"]))
    low = best["after"].get(f"{metric}_low")
    value = figure(best["after"][metric])
    said = f"Recommended: {_name(best)}, with {metric} {value} on TEST."
    if not ranked or low is None:
        return said
    # A difference within the interval is one that other TEST pairs could turn round.
    others = [row for row in tested if row is not best and row["after"][metric] >= low]
    if not others:
        return f"{said} Its 95% interval holds no other setting."
    near = "; ".join(_name(row) for row in others)
    return f"{said} Within its 95% interval lie too, and may be as good: {near}."


def _rank(row: dict[str, Any], metric: str) -> float:
    value = row["after"][metric]
    return -value if metric == "loss" else value


def _name(row: dict[str, Any]) -> str:
    return ", ".join(f"{field}={json.dumps(value)}" for field, value in row["setting"].items())
