"""A run on a small disk: one line and a remedy when it is full, the same end once there is room."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdpo

ROOT = Path(jaxdpo.__file__).parent.parent


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of 12 MB, which holds one checkpoint of the quickstart's and not two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def train(run: Path, cache: Path) -> subprocess.CompletedProcess:
    settings = {
        "training.folder": run,
        "data.cache_dir": cache,
        "training.max_steps": 4,
        "training.completions": 0,
        "training.evaluate_every": 4,
        "training.watch.prompts": 0,
        "checkpoint.every": 1,
        "batch.size": 8,
    }
    words = [f"{key}={value}" for key, value in settings.items()]
    return subprocess.run(
        [sys.executable, "-m", "jaxdpo.train", "@configs/quickstart.yaml", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_ends_the_same(small_disk, tmp_path):
    cache = tmp_path / "cache"
    whole = train(tmp_path / "whole", cache)
    assert whole.returncode == 0, whole.stderr
    run = small_disk / "run"
    full = train(run, cache)
    assert full.returncode == 2
    assert "could not be saved: No space left on device; make room" in full.stderr
    assert full.stderr.count("\n") == 1, full.stderr
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    after = train(run, cache)
    assert after.returncode == 0, after.stderr
    expected = (tmp_path / "whole/model/model.safetensors").read_bytes()
    assert (run / "model/model.safetensors").read_bytes() == expected
