"""Our optimizer step against TRL's: `python -m tests.benchmarks.step [key=value …]`.

Both train the same weights on the same pairs in the same order, in fp32 on two threads, AdamW and
clipping alike; TRL is tuned: reference log-probs computed beforehand, no activation checkpointing,
microbatches of the size that suits it best. They alternate in processes of their own, and no time
counts unless loss and gradient norm of the first steps agree. Ratios are of pairs per second in the
steps after the first, the median over rounds.

  workloads=chat,real   of chat, long prompts, equal, no prompt, real; default: all
  pairs=FILE            preference file of the workload `real`; without one it is left out
  tuning=full,lora      full fine-tuning, LoRA, or both (default)
  rounds=3 steps=4 batch=8 layers=8 width=384 vocabulary=8192
  device=gpu            both in bf16 on the GPU at hand instead, and its memory
  without=1             the second table: our step with one technique taken away at a time
  output=FILE.json      everything measured
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.contestants import ALPHA, RANK, WHOLE_HEAD, Task
from tests.benchmarks.workloads import (
    LENGTHS,
    write_adapter,
    write_llama,
    write_tokenised,
    write_workload,
)

DEFAULTS: dict[str, Any] = {
    "workloads": ",".join([*LENGTHS, "real"]),
    "pairs": None,
    "tuning": "full,lora",
    "rounds": 3,
    "steps": 4,
    "batch": 8,
    "layers": 8,
    "width": 384,
    "vocabulary": 8192,
    "device": "cpu",
    "without": 0,
    "output": None,
}
# What TRL may choose between: all pairs of a step at once, or a few, with less padding.
MICROBATCHES = (8, 2)
# Our step without one technique each.
WITHOUT: dict[str, dict[str, Any]] = {
    "everything": {},
    "packing": {"batch.pack": "false"},
    "prefix sharing": {"batch.share_prefix": "false"},
    "chunked head": {WHOLE_HEAD: True},
    "cached reference": {"reference.kind": "frozen"},
    "remat": {"model.remat": "none"},
}
ENVIRONMENT = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}


def read_options(
    arguments: list[str], defaults: dict[str, Any], usage: str | None
) -> dict[str, Any]:
    """The options of a benchmark, `key=value` each; for any other argument its usage is shown."""
    options = dict(defaults)
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in defaults:
            raise SystemExit(usage)
        options[name] = type(defaults[name])(value) if defaults[name] is not None else value
    return options


def run(task: Task) -> dict[str, Any]:
    """A contestant's result, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        given, on_cpu = asdict(task) | {"folder": folder}, task.device == "cpu"
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.contestants", json.dumps(given)],
            env=os.environ | ENVIRONMENT | ({"JAX_PLATFORMS": "cpu"} if on_cpu else {}),
            capture_output=True,
            text=True,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{task.side} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[0].removeprefix("RESULT "))


def check_agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Stops unless both trained the same: loss and gradient norm of three steps.

    The second and third loss depend on the gradients of the steps before.
    """
    # By the rounding of fp32, and of bf16.
    scale = 1 if ours["task"]["device"] == "cpu" else 10
    for name, allowed in (("loss", 2e-3 * scale), ("grad_norm", 5e-3 * scale)):
        for step, (a, b) in enumerate(zip(ours[name][:3], theirs[name][:3], strict=True)):
            if abs(a - b) > allowed * abs(b):
                raise SystemExit(f"{name} of step {step + 1}: jaxdpo {a}, TRL {b}: not the same")


def seconds(result: dict[str, Any]) -> float:
    """Returns the figure of the steps after the first."""
    return sum(result["steps"][1:])


def microbatches(task: Task) -> list[Task]:
    """TRL's task with each size of microbatch that it may choose."""
    return [
        replace(
            task,
            options={
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": task.batch // size,
            },
        )
        for size in sorted({min(size, task.batch) for size in MICROBATCHES})
    ]


def compare(ours: Task, theirs: Task, rounds: int) -> dict[str, Any]:
    """Both in turn, `rounds` times; in the first round TRL's fastest microbatch is found."""
    runs, candidates = [], microbatches(theirs)
    for _ in range(rounds):
        result = run(ours)
        tried = [(run(candidate), candidate) for candidate in candidates]
        fastest, chosen = min(tried, key=lambda one: seconds(one[0]))
        check_agreement(result, fastest)
        runs.append((result, fastest))
        candidates = [chosen]
    return {"runs": runs, "options": candidates[0].options}


def summary(workload: str, tuning: str, measured: dict[str, Any], batch: int) -> list[str]:
    """A row of the first table."""
    runs = measured["runs"]
    ratios = sorted(seconds(theirs) / seconds(ours) for ours, theirs in runs)
    ours, theirs = runs[0]
    steps = len(ours["steps"]) - 1
    pairs = [batch * steps / min(seconds(pair[side]) for pair in runs) for side in (0, 1)]

    def epochs(count: int) -> float:
        """Ratio of times of `count` passes over the pairs of the measured steps, reference too."""
        per_pass = [
            statistics.median(seconds(pair[side]) for pair in runs) / steps for side in (0, 1)
        ]
        reference = [
            statistics.median(pair[side]["prepared"] for pair in runs) / (steps + 1)
            for side in (0, 1)
        ]
        return (count * per_pass[1] + reference[1]) / (count * per_pass[0] + reference[0])

    return [
        workload,
        tuning,
        f"{pairs[0]:.2f}",
        f"{pairs[1]:.2f}",
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})",
        f"{epochs(1):.2f} / {epochs(3):.2f}",
        f"{ours['memory_gib']:.2f} / {theirs['memory_gib']:.2f}",
        f"{ours['first']:.0f} / {theirs['first']:.0f}",
        str(ours["compiles"]),
        f"{ours['efficiency']:.2f}",
    ]


def main(arguments: list[str]) -> None:
    options = read_options(arguments, DEFAULTS, __doc__)
    console = Console(width=150)
    columns = ("workload", "tuning", "jaxdpo pairs/s", "TRL pairs/s", "ratio (range)")
    columns += ("1 / 3 epochs", "peak GiB", "first step s", "compiles", "packing")
    table = Table(*columns, title="jaxdpo against tuned TRL")
    without = Table("taken away", "workload", "pairs/s", "of full speed", "peak GiB")
    everything: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        vocabulary = options["vocabulary"]
        model = write_llama(root / "model", options["layers"], options["width"], vocabulary)
        adapter = write_adapter(root / "adapter", model, RANK, ALPHA)
        for workload in options["workloads"].split(","):
            count = options["batch"] * options["steps"]
            if workload == "real" and options["pairs"] is None:
                continue
            pairs = root / f"{workload.replace(' ', '_')}.jsonl"
            if workload == "real":
                write_tokenised(pairs, Path(options["pairs"]), count, vocabulary)
            else:
                write_workload(pairs, workload, count, vocabulary)
            for tuning in options["tuning"].split(","):
                start = str(adapter) if tuning == "lora" else None
                ours = Task(
                    "jaxdpo",
                    str(model),
                    str(pairs),
                    options["batch"],
                    options["steps"],
                    options["device"],
                    start,
                )
                theirs = replace(ours, side="trl")
                measured = compare(ours, theirs, options["rounds"])
                everything[f"{workload}, {tuning}"] = measured
                row = summary(workload, tuning, measured, options["batch"])
                table.add_row(*row)
                console.print("  ".join(row))
            if options["without"]:
                _take_away(without, workload, replace(ours, adapter=None), everything)
    console.print(table)
    if options["without"]:
        console.print(without)
    if options["output"]:
        Path(options["output"]).write_text(json.dumps(everything, indent=1))


def _take_away(table: Table, workload: str, task: Task, everything: dict[str, Any]) -> None:
    """Rows of the second table: each technique's worth."""
    results = {name: run(replace(task, options=options)) for name, options in WITHOUT.items()}
    everything[f"{workload}, without"] = results
    full = seconds(results["everything"])
    for name, result in results.items():
        pairs = task.batch * (task.steps - 1) / seconds(result)
        share = f"{full / seconds(result):.2f}"
        label = "nothing" if name == "everything" else name
        table.add_row(label, workload, f"{pairs:.2f}", share, f"{result['memory_gib']:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
