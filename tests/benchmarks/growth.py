"""Cost grows as the work does: `python -m tests.benchmarks.growth [key=value …]`.

Pairs per second of our training step on a small random Llama and chat lengths (of pairs that the
shortest row has room for), each figure from a process of its own: with ever more data at one shape
of step, and with ever longer rows on the same pairs. The first step, which compiles, is not
counted. `packing` is the share of places that hold tokens; the rest is padding. `prepared` is the
time to tokenise the data and to score it with the reference.

  pairs=64              pairs of the smallest data set; the others have 4 and 16 times as many
  row_lengths=512,1024,2048,4096,8192
  steps=4 batch=64 layers=8 width=384 vocabulary=8192 rounds=2
  output=FILE.json      everything measured
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.contestants import Task
from tests.benchmarks.step import read_options, run, seconds
from tests.benchmarks.workloads import write_llama, write_workload

DEFAULTS: dict[str, Any] = {
    "pairs": 64,
    "row_lengths": "512,1024,2048,4096,8192",
    "steps": 4,
    "batch": 64,
    "layers": 8,
    "width": 384,
    "vocabulary": 8192,
    "rounds": 2,
    "output": None,
}
TIMES = (1, 4, 16)


def measured(tasks: dict[str, Task], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Results of all tasks in turn, `rounds` times, so that a busy machine is so for all."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            found[name].append(run(task))
    return found


def shown(title: str, what: str, found: dict[str, list[dict[str, Any]]], batch: int) -> Table:
    """A row for each task: speed in the median of its rounds, beside the first task's."""
    columns = ("pairs/s", "of the first", "packing", "peak GiB", "prepared s")
    table = Table(what, *columns, title=title)
    speeds = {
        name: statistics.median(batch * (len(r["steps"]) - 1) / seconds(r) for r in results)
        for name, results in found.items()
    }
    first = next(iter(speeds.values()))
    for name, results in found.items():
        last = results[-1]
        table.add_row(
            name,
            f"{speeds[name]:.2f}",
            f"{speeds[name] / first:.2f}",
            f"{last['efficiency']:.3f}",
            f"{last['memory_gib']:.2f}",
            f"{statistics.median(r['prepared'] for r in results):.1f}",
        )
    return table


def main(arguments: list[str]) -> None:
    options = read_options(arguments, DEFAULTS, __doc__)
    batch, steps, rounds = options["batch"], options["steps"], options["rounds"]
    lengths = [int(length) for length in options["row_lengths"].split(",")]
    with tempfile.TemporaryDirectory() as folder:
        root, vocabulary = Path(folder), options["vocabulary"]
        model = str(write_llama(root / "model", options["layers"], options["width"], vocabulary))
        data = {
            times: str(
                write_pairs(root / str(times), times * options["pairs"], vocabulary, min(lengths))
            )
            for times in TIMES
        }

        def task(pairs: str, row_length: int) -> Task:
            # Rows of one length whatever the data: the same program.
            shape = {"batch.row_length": row_length}
            return Task("jaxdpo", model, pairs, batch, steps, "cpu", options=shape)

        by_size = {
            f"{times} × {options['pairs']}": task(pairs, lengths[len(lengths) // 2])
            for times, pairs in data.items()
        }
        by_length = {str(length): task(data[1], length) for length in lengths}
        sizes, rows = measured(by_size, rounds), measured(by_length, rounds)
    console = Console(width=170)
    console.print(shown("More data, one shape of step", "pairs", sizes, batch))
    console.print(shown("Longer rows, the same pairs", "row length", rows, batch))
    if options["output"]:
        Path(options["output"]).write_text(json.dumps({"data": sizes, "rows": rows}, indent=1))


def write_pairs(path: Path, count: int, vocabulary: int, longest: int) -> Path:
    """Pairs of chat lengths that have room in the shortest row."""
    everything = write_workload(path.with_suffix(".all"), "chat", count * 20, vocabulary)
    drawn = everything.read_text().splitlines()
    fitting = [line for line in drawn if sum(map(len, json.loads(line).values())) <= longest]
    if len(fitting) < count:
        raise SystemExit(f"too few chat pairs fit into rows of {longest}")
    chosen = path.with_suffix(".jsonl")
    chosen.write_text("".join(line + "\n" for line in fitting[:count]))
    return chosen


if __name__ == "__main__":
    main(sys.argv[1:])
