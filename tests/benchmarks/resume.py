"""A run that is killed and resumed, against one that is not: `python -m tests.benchmarks.resume`.

Both take the same steps (`steps=30`) of the quickstart model on the machine at hand, with
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

from tests.benchmarks.step import read_options


def command(folder: Path, steps: int, deterministic: bool) -> list[str]:
    """The run as a command."""
    settings = {
        "training.folder": folder,
        "training.max_steps": steps,
        "training.completions": 0,
        "training.evaluate_every": steps,
        "training.deterministic": str(deterministic).lower(),
        "training.report_to": "[]",
        "checkpoint.every": 3,
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


def run(folder: Path, steps: int, deterministic: bool) -> float:
    """Runs to the end, and returns the seconds that it took."""
    began = time.perf_counter()
    subprocess.run(command(folder, steps, deterministic), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def kill_and_resume(folder: Path, steps: int) -> None:
    """Kills a run without warning in the middle of its steps, and runs it again."""
    process = subprocess.Popen(command(folder, steps, True), stdout=subprocess.DEVNULL)
    metrics = folder / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") > steps // 3:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    if process.wait() != -signal.SIGKILL:
        raise SystemExit("the run ended before it was killed")
    run(folder, steps, True)


def main(arguments: list[str]) -> None:
    steps = read_options(arguments, {"steps": 30}, __doc__)["steps"]
    with tempfile.TemporaryDirectory() as root:
        whole, resumed = Path(root) / "whole", Path(root) / "resumed"
        seconds = run(whole, steps, True)
        kill_and_resume(resumed, steps)
        same = weights(whole) == weights(resumed)
        print(f"killed and resumed: the weights are {'the same bits' if same else 'NOT the same'}")
        usual = run(Path(root) / "usual", steps, False)
        print(f"seconds of {steps} steps: deterministic {seconds:.1f}, as usual {usual:.1f}")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
