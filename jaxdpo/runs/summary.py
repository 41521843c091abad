"""The summary of a finished run: answers and TEST metrics before and after, and its files."""

from typing import Any

import numpy as np

from jaxdpo.cli.console import Reporter
from jaxdpo.hub.policy import Policy
from jaxdpo.runs.export import Export
from jaxdpo.runs.exported_step import ExportedStep
from jaxdpo.runs.folder import FACTS_FILE, RunFolder
from jaxdpo.runs.held_out import held_out_metrics, held_out_scores
from jaxdpo.runs.setup import Setup
from jaxdpo.runs.watch import WatchedPrompts
from jaxdpo.sampling import complete, numbered
from jaxdpo.training.writers import METRICS_FILE

# The metrics that the console shows of TEST pairs; summary.json holds all of them.
_SHOWN = ("rewards/accuracies", "rewards/margins", "loss", "logps/chosen", "logps/rejected")


def answer_test_prompts(setup: Setup, policy: Policy, folder: RunFolder, when: str) -> list[str]:
    """Answers the first TEST prompts; answers that a run gave before it was cut off are read.

    Args:
      setup: The run.
      policy: Who answers.
      folder: The run folder, where they are kept in `completions_<when>.json`.
      when: "before" or "after" training.
    """
    if setup.test is None:
        return []
    name = f"completions_{when}.json"
    kept = folder.read_json(name)
    if kept is not None:
        return kept
    config, source = setup.config, setup.test.source
    count = min(config.training.completions, len(source))
    prompts = [source[index].prompt_ids.tolist() for index in range(count)]
    done = complete(policy, numbered(prompts), config.sampling, setup.objective.compute.dtype)
    # Answers come as they end; the prompts' numbers put them in order.
    texts = [each.text for each in sorted(done)]
    folder.write_json(name, texts)
    return texts


def test_records(
    setup: Setup,
    exported: ExportedStep,
    export: Export,
    history: list[dict[str, Any]],
    reporter: Reporter,
) -> dict[str, Any] | None:
    """Returns the TEST metrics before training, and those of the exported weights.

    Weights that are merged or rounded to be written are not those that the run evaluated, so they
    are evaluated anew.

    Args:
      setup: The run.
      exported: The step that is exported.
      export: Its weights.
      history: The records of metrics.jsonl.
      reporter: Says how far the two differ.

    Returns:
      A record before and one after, as in metrics.jsonl; None if there are no TEST pairs.
    """
    tested = [record for record in history if record["split"] == "TEST"]
    # The last step is always evaluated, and so is every step that may be the best.
    of_step = [record for record in tested if record["step"] == exported.step]
    if setup.test is None or not of_step:
        return None
    after = of_step[-1]
    if export.as_written and export.rounded:
        scores = held_out_scores(setup, export.policy.params, export.policy.lora)
        assert scores is not None
        measured = held_out_metrics(setup, scores)
        watched = WatchedPrompts.of(setup)
        if watched is not None:
            measured |= watched.measure(export.policy)
        reporter.say(
            f"TEST loss {after['loss']:.4f} as trained, {measured['loss']:.4f} as exported in "
            f"{export.dtype}"
        )
        after = {**after, **measured}
    return {"before": tested[0], "after": after}


def summarise(
    setup: Setup,
    exported: ExportedStep,
    folder: RunFolder,
    history: list[dict[str, Any]],
    tested: dict[str, Any] | None,
    before: list[str],
    after: list[str],
) -> dict[str, Any]:
    """Returns what summary.json holds of a finished run.

    Args:
      setup: The run.
      exported: The step that is exported.
      folder: The run folder.
      history: The records of metrics.jsonl.
      tested: From `test_records`.
      before: Answers to the TEST prompts before training.
      after: Answers after training.
    """
    speeds = [record["pairs_per_second"] for record in history if "pairs_per_second" in record]
    path, completions = folder.path, []
    # A run that goes on may be asked for fewer answers, or for more, than it was begun with.
    for index, texts in enumerate(zip(before, after, strict=False)):
        assert setup.test is not None
        prompt = setup.policy.chat.decode(setup.test.source[index].prompt_ids.tolist())
        completions.append({"prompt": prompt.strip(), "before": texts[0], "after": texts[1]})
    return {
        "steps": setup.plan.num_steps,
        "exported": {
            "step": exported.step,
            "best": exported.best,
            "stopped": exported.stopped,
        },
        # The median, which a pause of the machine does not move.
        "pairs_per_second": float(np.median(speeds)) if speeds else None,
        "test": tested,
        "completions": completions,
        "files": {
            "aligned model": str(path / "model"),
            "curves": str(path / "curves.png"),
            "metrics": str(path / METRICS_FILE),
            "TensorBoard": str(path / "tensorboard"),
            "checkpoints": str(path / "checkpoints"),
            "configuration": str(path / "config.yaml"),
        },
    }


def goodput(
    history: list[dict[str, Any]], folder: RunFolder, reporter: Reporter
) -> dict[str, float]:
    """Returns how much of a run's time went into steps that count.

    The rest went into imports, compiling, evaluations, the export, and steps that were taken again
    after an interruption. Of a process that was killed, the time since its last evaluation is not
    known.

    Args:
      history: The records of metrics.jsonl.
      folder: The run folder, which knows the processes that worked on the run before.
      reporter: Knows the time of this one.
    """
    sessions = (folder.read_json(FACTS_FILE) or {}).get("sessions", [])
    trained = sum(record.get("step_seconds", 0.0) for record in history)
    seconds = sum(each.get("seconds", 0.0) for each in sessions[:-1]) + reporter.seconds()
    return {"step_seconds": trained, "seconds": seconds, "share": trained / seconds}


def show_summary(reporter: Reporter, summary: dict[str, Any]) -> None:
    """Shows what a run achieved, and where everything lies."""
    if summary["completions"]:
        # Side by side: a reader sees in three answers what no metric says.
        rows = [(c["prompt"], c["before"], c["after"]) for c in summary["completions"]]
        reporter.table("TEST prompts, answered", ("prompt", "before", "after"), rows)
    if summary["test"]:
        before, after = summary["test"]["before"], summary["test"]["after"]
        rows = [
            (name, f"{before[name]:.3f}", f"{after[name]:.3f}") for name in _SHOWN if name in after
        ]
        exported = summary["exported"]
        of = f"TEST pairs, after: {exported['test_is_of']}, {exported['dtype']}"
        reporter.table(of, ("metric", "before", "after"), rows)
    reporter.table("Files", ("what", "where"), list(summary["files"].items()))
