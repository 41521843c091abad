"""The training step as XLA compiles it for an H100: `python -m tests.benchmarks.launches`.

    python -m tests.benchmarks.launches config=@configs/llama-1b.yaml section.field=…

Needs no GPU (`pip install 'jaxdpo[plan-gpu]'`, for cuDNN's attention `nvidia-cudnn-cu13` too), and
shows for each attention what a device would launch for a microbatch, the loops with their turns,
the peak, and the largest array of scores `[T, T]` or of logits `[tokens, vocabulary]`, which are 0
where neither is ever held. Chat lengths, one device.
"""

import math
import re
import sys
from dataclasses import dataclass, field

import jax
import numpy as np

from jaxdpo.cli.console import Reporter
from jaxdpo.config import load_config
from jaxdpo.devices.sharding import make_mesh
from jaxdpo.errors import UserError
from jaxdpo.hub.families import config_from_hf
from jaxdpo.hub.find import find_folder
from jaxdpo.hub.folder import read_config
from jaxdpo.planning.aot import compile_step
from jaxdpo.planning.chips import keep_to_cpu, target
from jaxdpo.planning.lengths import assumed_lengths
from jaxdpo.runs.execution import resolve

ATTENTION = ("pallas", "cudnn", "tiles")
# Instructions that run nothing on the device: names of memory, and ends of what was begun before.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"}
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = .*?\s([a-z][\w-]*)\(")
CALLED = re.compile(r"(?:condition|body)=%?([\w.-]+)")
TURNS = re.compile(r"known_trip_count[^0-9]*(\d+)")


@dataclass
class Computation:
    """A computation of a compiled program.

    Attributes:
      launches: Instructions that the device runs, without those of loops.
      loops: Of each loop its turns (None where data says how many), and its computations' names.
    """

    launches: int = 0
    loops: list[tuple[int | None, list[str]]] = field(default_factory=list)


def computations(text: str) -> dict[str, Computation]:
    """The computations of a compiled program's text, by name; the program's own as ENTRY."""
    found: dict[str, Computation] = {}
    current = Computation()
    for line in text.splitlines():
        opened = re.match(r"^(ENTRY )?%?([\w.-]+) .*\{$", line)
        if opened:
            current = found["ENTRY" if opened[1] else opened[2]] = Computation()
            continue
        instruction = INSTRUCTION.match(line)
        if instruction is None:
            continue
        opcode = instruction[1]
        if opcode == "while":
            turns = TURNS.search(line)
            current.loops.append((int(turns[1]) if turns else None, CALLED.findall(line)))
        elif opcode not in FREE and not opcode.endswith("-done"):
            current.launches += 1
    return found


def launches(found: dict[str, Computation], name: str) -> int:
    """Counts what a computation launches with its loops; one of unknown length is one turn."""
    one = found[name]
    loops = sum(
        (turns or 1) * sum(launches(found, called) for called in names)
        for turns, names in one.loops
    )
    return one.launches + loops


def microbatch(found: dict[str, Computation]) -> tuple[int, list[int | None]]:
    """Launches of a microbatch, and the turns of its loops.

    Microbatches are the program's outermost loop, whose length is data.
    """
    outermost = [names for turns, names in found["ENTRY"].loops if turns is None]
    name = outermost[0][-1] if outermost else "ENTRY"
    body = max(outermost[0], key=lambda each: launches(found, each)) if outermost else name
    turns, waiting = [], [body]
    while waiting:
        loops = found[waiting.pop()].loops
        turns += [count for count, _ in loops]
        waiting += [called for _, names in loops for called in names]
    return launches(found, body), turns


def largest_of(text: str, *sides: int) -> int:
    """The elements of the largest array that has these sides next to one another; 0 for none."""
    pattern = r"\[((?:\d+,)*" + ",".join(map(str, sides)) + r"(?:,\d+)*)\]"
    return max(
        (math.prod(map(int, each.split(","))) for each in re.findall(pattern, text)), default=0
    )


def main(arguments: list[str]) -> None:
    """Compiles the step for each attention and prints a row for each."""
    values = dict(argument.split("=", 1) for argument in arguments)
    path = values.pop("config", "@configs/llama-1b.yaml")
    kinds = values.pop("attention", ",".join(ATTENTION)).split(",")
    settings = {
        "data.path": "unused",
        "training.folder": "unused",
        "mesh.fsdp": "1",
        "mesh.data": "-1",
        "batch.size": "64",
        "batch.rows_per_device": "4",
        "model.remat": "dots",
        **values,
    }
    keep_to_cpu()
    other, reporter, rows = target("h100:1"), Reporter(), []
    for kind in kinds:
        given = [f"{name}={value}" for name, value in settings.items()]
        config = load_config(path, [*given, f"model.attention={kind}"])
        folder = find_folder(config.model.path, weights=False)
        model = config_from_hf(read_config(folder), config.data.max_length)
        lengths = assumed_lengths(1024, 120, 290, config.data.max_length)
        mesh = make_mesh(config.mesh, other.devices)
        with jax.set_mesh(mesh), reporter.phase(f"compiling with {kind}"):
            try:
                none = np.zeros((0, 3), np.int32)
                resolved = resolve(config, model, lengths, none, mesh, other.machine)
                compiled = compile_step(config, model, resolved, mesh, other.chip.platform)
            except UserError as error:
                rows.append((kind, str(error)[:60], "", "", "", ""))
                continue
        text = compiled.program.as_text()
        count, turns = microbatch(computations(text))
        length = resolved.shape.row_length
        loops = ", ".join("?" if each is None else str(each) for each in turns)
        scores = largest_of(text, length, length)
        logits = largest_of(text, resolved.shape.rows * resolved.shape.scores, model.vocab_size)
        peak = f"{compiled.peak / 2**30:.1f}"
        rows.append((kind, f"{count:,}", loops, peak, f"{scores:,}", f"{logits:,}"))
    header = ("attention", "launches", "turns of loops", "peak GiB")
    reporter.table("A microbatch on an H100", (*header, "[T, T]", "logits"), rows)


if __name__ == "__main__":
    main(sys.argv[1:])
