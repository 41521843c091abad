"""Writes what a run leaves to be read: metrics.jsonl, and curves as PNG."""

import json
import re
import zlib
from pathlib import Path
from typing import Any

from jaxdpo.devices.sizes import ceil_div
from jaxdpo.storage.files import naming, replacing
from jaxdpo.storage.noted import METRIC_CHECKS, damaged
from jaxdpo.training.trackers.opening import Trackers

METRICS_FILE = "metrics.jsonl"
_CURVES = (
    ("loss", "loss [nats]"),
    ("rewards/accuracies", "reward accuracy"),
    ("rewards/margins", "reward margin"),
    ("logps/chosen", "log-prob of chosen [nats]"),
)


class MetricWriter:
    """Appends records to a run's metrics.jsonl, and passes them on to its trackers.

    Args:
      folder: The run folder.
      first_step: Records of later steps, left by a run that was cut off, are removed: those steps
        are done again.
      trackers: The trackers.
    """

    def __init__(self, folder: Path, first_step: int, trackers: Trackers):
        path, checks = folder / METRICS_FILE, folder / METRIC_CHECKS
        kept = [record for record in read_metrics(folder) if record["step"] <= first_step]
        lines = [json.dumps(record) for record in kept]
        # Checksums of other records must not stand beside these, whenever the process is killed.
        checks.unlink(missing_ok=True)
        with replacing(path) as file:
            file.writelines(f"{line}\n" for line in lines)
        with replacing(checks) as file:
            file.writelines(f"{_checksum(line)}\n" for line in lines)
        self._path, self._file = path, open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._checks = open(checks, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self.trackers = trackers
        self._tested = {record["step"] for record in kept if record["split"] == "TEST"}

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Adds one record.

        Args:
          step: Optimizer steps done.
          split: "TRAIN" or "TEST".
          metrics: Name ↦ value.
        """
        line = json.dumps({"step": step, "split": split, **metrics})
        with naming(self._path):
            for file, text in ((self._file, line), (self._checks, _checksum(line))):
                file.write(f"{text}\n")
                file.flush()
        self.trackers.write(step, split, metrics)

    def has_test(self, step: int) -> bool:
        """Tells whether the TEST metrics of a step were there when the run was continued."""
        return step in self._tested

    def close(self) -> None:
        """Closes the files; the trackers wait for the files of the finished run."""
        for file in (self._file, self._checks):
            file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Reads the records of a run's metrics.jsonl, in order, without a torn last line.

    Raises:
      UserError: Naming the first line that is not as it was written.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    # Every whole record ends its line, so what follows the last newline is a torn one.
    lines = path.read_bytes().split(b"\n")[:-1]
    checks = _read_checks(folder / METRIC_CHECKS)
    records = []
    for number, line in enumerate(lines):
        try:
            if number < len(checks) and checks[number] != f"{zlib.crc32(line):08x}":
                raise ValueError("it is not as it was written")
            record = json.loads(line)
            records.append({**record, "step": int(record["step"]), "split": str(record["split"])})
        except (ValueError, LookupError, TypeError) as error:
            raise damaged(path, f"line {number + 1}: {error}") from None
    return records


def _read_checks(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="ascii").split("\n")[:-1]
    except (OSError, ValueError):
        return []
    # The last record may have none yet, where the process was killed between the two writes. A
    # damaged one would accuse a good record; there is no telling, so then none is used.
    return lines if all(re.fullmatch("[0-9a-f]{8}", line) for line in lines) else []


def _checksum(line: str) -> str:
    return f"{zlib.crc32(line.encode('utf-8')):08x}"


def plot_curves(records: list[dict[str, Any]], path: Path) -> None:
    """Draws loss, accuracy, margin and chosen log-prob over the steps, TEST with 95% intervals."""
    # The object interface, which leaves the state of a notebook's pyplot alone.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    # Supervised training has no rewards.
    curves = [curve for curve in _CURVES if any(curve[0] in record for record in records)]
    grid = figure.subplots(ceil_div(len(curves), 2), 2, squeeze=False).flat
    for axes, (name, label) in zip(grid, curves, strict=False):
        for split, style in (("TRAIN", "-"), ("TEST", "o-")):
            points = [(r["step"], r[name]) for r in records if r["split"] == split and name in r]
            if points:
                (drawn,) = axes.plot(*zip(*points, strict=True), style, label=split, linewidth=1.4)
                ends = [
                    (r["step"], r[f"{name}_low"], r[f"{name}_high"])
                    for r in records
                    if r["split"] == split and f"{name}_low" in r
                ]
                if ends:
                    axes.vlines(*zip(*ends, strict=True), colors=drawn.get_color(), alpha=0.5)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
