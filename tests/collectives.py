"""Counts the bytes that the collectives of a program bring together, loops in full."""

import math
import re
from collections import Counter

_WIDTHS = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "f64": 8}
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")


def result_bytes(text: str) -> Counter[str]:
    """Kind ↦ bytes of the results, each operation as often as its loops run it."""
    found: Counter[str] = Counter()
    for kind, shape, times in operations(text):
        found[kind] += times * sum(
            _WIDTHS[dtype] * math.prod(map(int, filter(None, sizes.split(","))))
            for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape)
        )
    return found


def operations(text: str) -> list[tuple[str, str, int]]:
    """(kind, shape, how often it runs) of each collective of a program for CPUs."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    entry = ""
    for line in text.splitlines():
        begins = _COMPUTATION.match(line)
        if begins:
            lines = bodies.setdefault(begins[1], [])
            entry = begins[1] if line.startswith("ENTRY") else entry
        else:
            lines.append(line)

    def of(name: str, times: int) -> list[tuple[str, str, int]]:
        found = []
        for line in bodies.get(name, []):
            operation = re.search(rf"= (.*?) ({'|'.join(_KINDS)})(?:-start)?\(", line)
            if operation:
                found.append((operation[2], operation[1], times))
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for called in re.findall(r"(?:body|calls|to_apply)=%([\w.\-]+)", line):
                found += of(called, times * int(trips[1]) if trips else times)
        return found

    return of(entry, 1)
