"""A run that is killed and resumed, against one that is not: `python -m tests.benchmarks.resume`.

Both take the same 30 steps of the quickstart model on the machine at hand, with
`training.deterministic`, and the exported weights must be the same bits. On GPUs they need that
option, since some operations add in an order of chance; the time that it costs is printed too.
"""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, KILLED_AFTER = 30, 10


def command(folder: Path, deterministic: bool) -> list[str]:
    """The run as a command."""
    settings = {
        "training.folder": folder,
        "training.max_steps": STEPS,
        "training.completions": 0,
        "training.evaluate_every": STEPS,
        "training.deterministic": str(deterministic).lower(),
        "training.report_to": "[]",
        "checkpoint.every": 5,
        "data.cache_dir": folder.parent / "cache",
    }
    given = [f"{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "jaxdpo.train", "@configs/quickstart.yaml", *given]


def weights(folder: Path) -> str:
    """A digest of the exported weights."""
    digest = hashlib.sha256()
    for file in sorted((folder / "model").glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def run(folder: Path, deterministic: bool) -> float:
    """Runs to the end, and returns the seconds that it took."""
    began = time.perf_counter()
    subprocess.run(command(folder, deterministic), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def kill_and_resume(folder: Path) -> None:
    """Kills a run without warning once its metrics hold some steps, and runs it again."""
    process = subprocess.Popen(command(folder, True), stdout=subprocess.DEVNULL)
    metrics = folder / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= KILLED_AFTER:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    if process.wait() != -signal.SIGKILL:
        raise SystemExit("the run ended before it was killed")
    run(folder, True)


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        whole, resumed = Path(root) / "whole", Path(root) / "resumed"
        seconds = run(whole, True)
        kill_and_resume(resumed)
        same = weights(whole) == weights(resumed)
        print(f"killed and resumed: the weights are {'the same bits' if same else 'NOT the same'}")
        usual = run(Path(root) / "usual", False)
        print(f"seconds of {STEPS} steps: deterministic {seconds:.1f}, as usual {usual:.1f}")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
