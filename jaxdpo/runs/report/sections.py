"""The sections of a run's page: metrics, answers, pairs, data, and what the run was made with."""

from collections import defaultdict
from typing import Any

import numpy as np
from markupsafe import Markup

from jaxdpo.cli.progress import spoken
from jaxdpo.pages.cells import Table, figure, interval, number, text_block
from jaxdpo.pages.histograms import draw_counts
from jaxdpo.runs.card import origin_of
from jaxdpo.runs.report.files import RunFiles
from jaxdpo.runs.report.sentences import first_and_last, short

# Characters of a text that a table shows; a page of two hundred novels would not open.
_MOST_TEXT = 1500
# Metrics in words, in the order of the table; all others follow by their names.
_IN_WORDS = {
    "loss": "loss",
    "rewards/accuracies": "share of pairs ranked as people did",
    "rewards/margins": "reward margin, chosen less rejected",
    "kl": "distance from the reference, nats an answer",
    "logps/chosen": "log-probability of chosen answers, nats",
    "logps/rejected": "log-probability of rejected answers, nats",
    "logps/chosen_per_token": "log-probability of each token of chosen answers, nats",
    "logps/rejected_per_token": "log-probability of each token of rejected answers, nats",
    "rewards/chosen": "reward of chosen answers, nats × β",
    "rewards/rejected": "reward of rejected answers, nats × β",
    "rewards/length_correlation": "correlation of the margin with the difference in length",
    "entropy": "entropy of the next token, nats",
    "token_accuracy": "share of the chosen answers' tokens that the model finds likeliest",
    "lengths/chosen": "tokens of chosen answers",
    "lengths/rejected": "tokens of rejected answers",
    "answers/tokens": "tokens of the model's own answers",
    "answers/broken": "share of its answers that are broken: any of the next three",
    "answers/unfinished": "share of its answers that do not end",
    "answers/empty": "share of its answers that are empty",
    "answers/repetitive": "share of its answers that repeat themselves",
    "num_pairs": "pairs",
}
_ENDS = ("_low", "_high")


def metrics_table(run: RunFiles) -> Table | None:
    """Returns the TEST metrics before training and of the exported step."""
    compared = first_and_last(run)
    if compared is None:
        return None
    first, last = compared
    names = [name for name in _IN_WORDS if name in last]
    # All of them: a page that picked its metrics could pick the good ones.
    names += [n for n in last if n not in (*names, "step", "split") and not n.endswith(_ENDS)]
    rows = [
        (_IN_WORDS.get(name, name), _measured(first, name), _measured(last, name), name)
        for name in names
    ]
    caption = (
        "TEST pairs, which training never sees. In parentheses the 95% interval: other pairs of "
        "the same source would give a figure in this range."
    )
    steps = [f"after step {record['step']}" for record in (first, last)]
    return Table(caption, ("figure", *steps, "name in metrics.jsonl"), rows)


def _measured(record: dict[str, Any], name: str) -> Markup:
    value = record.get(name)
    if value is None:
        return number(None)
    return interval(value, record.get(f"{name}_low"), record.get(f"{name}_high"))


def answers(run: RunFiles) -> list[dict[str, Any]]:
    """Returns each watched prompt with the answers that show its way: before, during, after."""
    by_prompt: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in run.answers:
        by_prompt[_spoken(each["messages"])].append(each)
    return [
        {
            "prompt": text_block(prompt, _MOST_TEXT),
            "shown": [_answer(each, found) for each in _before_during_after(found)],
            "all": [_answer(each, found) for each in found] if len(found) > 3 else [],
        }
        for prompt, found in by_prompt.items()
    ]


# Three answers tell the way; all of them stand below, folded, to see when it turned.
def _before_during_after(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(found) < 3:
        return found
    return [found[0], found[len(found) // 2], found[-1]]


def _answer(each: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, Any]:
    step = each["step"]
    when = "before training" if step == 0 else f"after step {step}"
    ended = "" if each["finished"] else " (cut off at the most tokens allowed)"
    return {"when": when + ended, "text": text_block(each["completion"], _MOST_TEXT)}


# Roles are written out: a conversation has several turns, and an answer depends on who said what.
def _spoken(messages: list[dict[str, Any]]) -> str:
    return "\n".join(f"{each['role']}: {each.get('content') or ''}" for each in messages)


def completions(run: RunFiles) -> list[dict[str, Any]]:
    """Returns the sampled answers to TEST prompts of the summary, before and after training."""
    return [
        {
            "prompt": text_block(each["prompt"], _MOST_TEXT),
            "shown": [
                {"when": f"{when} training", "text": text_block(each[when], _MOST_TEXT)}
                for when in ("before", "after")
            ],
            "all": [],
        }
        for each in (run.summary or {}).get("completions", ())
    ]


def pairs_table(run: RunFiles) -> Table | None:
    """Returns the TEST pairs, those that the model gets most wrong first."""
    kept = run.test_pairs
    if kept is None or not kept["pairs"]:
        return None
    measure, pairs = kept["measure"], kept["pairs"]
    names = [n for n in (measure, "chosen_reward", "rejected_reward") if n in pairs[0]]
    rows = [
        (
            *(number(pair[name]) for name in names),
            *(text_block(pair[part], _MOST_TEXT) for part in ("prompt", "chosen", "rejected")),
            short(pair["source"]),
        )
        for pair in pairs
    ]
    said = f"After step {kept['step']}. "
    if kept["wrong"] is not None:
        said += (
            f"For {kept['wrong']:,} of {kept['total']:,} pairs the model prefers the rejected "
            "answer: their margin is below 0. "
        )
    # Said, since nobody could tell a page of all pairs from one of some.
    if len(pairs) < kept["total"]:
        said += f"{len(pairs)} of {kept['total']:,} pairs are shown: the lowest and the highest. "
    header = (*(name.replace("_", " ") for name in names), "prompt", "chosen", "rejected", "where")
    return Table(said + "Press a column's name to sort.", header, rows, sortable=True, tall=True)


def data_table(run: RunFiles) -> Table:
    """Returns the pairs of each split, with the digest by which they are known again."""
    rows = [
        (split, number(of_split["pairs"]), of_split["sha256"])
        for split, of_split in run.data.items()
    ]
    header = ("split", "pairs", "SHA-256 of the tokenised pairs")
    return Table(f"From {run.config.data.name()}", header, rows)


def lengths(run: RunFiles) -> list[tuple[Table, Markup]]:
    """Returns, for each split, quantiles of the lengths in tokens, and their histograms."""
    found = []
    for split, of_split in run.facts.get("lengths", {}).items():
        parts = of_split["parts"]
        rows = [(name, *map(number, part["quantiles"])) for name, part in parts.items()]
        caption = f"Tokens of {split}: half of the pairs are shorter than the median"
        table = Table(caption, ("part", "median", "95% are shorter than", "longest"), rows)
        counts = [(name, np.array(part["counts"])) for name, part in parts.items()]
        found.append((table, draw_counts(counts, of_split["width"], "tokens", "pairs")))
    return found


def lineage(run: RunFiles) -> Table:
    """Returns the models that this one comes from, oldest first, with what is known of each."""
    config, origin = run.config, origin_of(run.config.model.path, run.path)
    rows = [("trained from, by its card", name) for name in origin.parents]
    rows.append(("started from", config.model.path))
    if origin.hub_id and origin.hub_id != config.model.path:
        rows.append(("nearest model on the Hub", origin.hub_id))
    rows.append(("licence of that model", str(origin.licence.get("license", "not stated"))))
    rows.append(("reference", config.reference.path or config.reference_kind))
    rows.append(("trained on", config.data.name()))
    if run.summary is not None:
        rows.append(("this model", str(run.path / "model")))
    return Table("The models that this one comes from", ("", ""), rows)


def sessions(run: RunFiles) -> list[tuple[Table, str]]:
    """Returns, for each process that worked on the run, where, with what, and for how long."""
    found = []
    for each in run.facts.get("sessions", ()):
        machine, seconds = each["machine"], each.get("seconds", 0.0)
        # What a bill is made of, whatever an hour of such a device costs where it ran.
        device_hours = machine["count"] * seconds / 3600
        rows = [
            ("steps", f"{each['first_step']} to {each.get('last_step', each['first_step'])}"),
            ("devices", machine["devices"]),
            ("processes", number(machine["processes"])),
            ("host", f"{machine['processor']}, {machine['system']}"),
            ("time", number(seconds, spoken(seconds))),
            ("cost", number(device_hours, f"{figure(device_hours)} device hours")),
            *(
                (f"  {name}", number(spent, spoken(spent)))
                for name, spent in each.get("phases", {}).items()
            ),
            ("versions", ", ".join(f"{name} {v}" for name, v in each["versions"].items())),
        ]
        caption = f"The process that began {each['begun']}"
        found.append((Table(caption, ("", ""), rows), "\n".join(each.get("said", ()))))
    return found


def evaluations(run: RunFiles) -> list[tuple[str, Table]]:
    """Returns the pass rates and scores of each evaluation that lies in the run folder."""
    found = []
    for name, results in run.evaluations.items():
        rows = [
            (rate["model"], rate["criterion"], _rate(rate["pass_rate"]), _rate(rate["mean_score"]))
            for rate in results.get("rates", ())
        ]
        caption = f"{results.get('prompts', 0)} prompts, with 95% intervals"
        found.append((name, Table(caption, ("model", "criterion", "pass rate", "score"), rows)))
    return found


def _rate(estimate: dict[str, Any]) -> Markup:
    if estimate["value"] is None:
        return number(None)
    return interval(estimate["value"], estimate["low"], estimate["high"])
