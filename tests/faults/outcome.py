"""The end of a command: every file that it left, without what the clock and the machine decide."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

# Keys of JSON whose values are times, speeds and memory.
_TIMED = re.compile("goodput|sessions|seconds|per_second|memory|begun|ended|stamp|sha256|phases")
# Pages, and records of the machine: that they are there is what counts.
_ONLY_THERE = (
    ".digests.json",
    ".metrics.crc32",
    "report.html",
    "inspect.html",
    "run.json",
    "index.html",
)


def outcome(folder: Path) -> dict[str, str]:
    """Returns every file below a folder ↦ a digest of what it says."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[f"{name}/"] = ""
            continue
        # Each start of a run opens a file of TensorBoard's events of its own, named by time and
        # machine, and a run goes on without them if they can't be written. Orbax calls files of
        # arrays by random names; the model that is exported tells what is in the newest, and the
        # manifest beside them tells that all are whole.
        if "tensorboard/" not in name and "/state/" not in name:
            found[name] = _digest(path)
    apart = ("/state/", "/tensorboard/")
    return {name: found[name] for name in found if not any(each in name for each in apart)}


def _digest(path: Path) -> str:
    if path.name in _ONLY_THERE:
        return ""
    if path.suffix in (".json", ".jsonl"):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        content = json.dumps([_untimed(json.loads(line)) for line in lines]).encode()
    else:
        content = path.read_bytes()
    return hashlib.sha256(content).hexdigest()


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _untimed(inner)
            for name, inner in value.items()
            if not _TIMED.search(name) and not name.startswith("state/")
        }
    return [_untimed(inner) for inner in value] if isinstance(value, list) else value


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Says in what two outcomes differ, a line for each file."""
    lines = [f"left behind: {name}" for name in found.keys() - expected.keys()]
    lines += [f"missing: {name}" for name in expected.keys() - found.keys()]
    lines += [
        f"differs: {name}"
        for name in found.keys() & expected.keys()
        if found[name] != expected[name]
    ]
    return sorted(lines)
