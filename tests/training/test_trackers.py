"""Every tracker holds every metric of metrics.jsonl, by its own reader; none stops a run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdpo.errors import UserError
from jaxdpo.training.trackers.opening import Trackers, check_trackers
from jaxdpo.training.trackers.tracker import TrackedRun

ROOT = Path(__file__).parents[2]
# An environment of their own: they bring much that nothing else needs. `.ci/run` makes it.
PYTHON = os.environ.get("JAXDPO_TRACKERS_PYTHON")
HERE = all(map(importlib.util.find_spec, ("wandb", "mlflow", "trackio", "tensorboard")))


def records() -> list[dict]:
    rng = np.random.default_rng(0)
    found = [{"step": 0, "split": "TEST", "loss": 0.6931471805599453, "rewards/margins": 0.0}]
    for step in range(1, 7):
        metrics = {"loss": float(rng.normal()), "grad_norm": float(rng.exponential() * 1e-7)}
        found.append({"step": step, "split": "TRAIN", **metrics, "rewards/margins": -1.5})
        if step % 2 == 0:
            rate = {"answers/pass_rate/at most (5) words?": step / 6}
            found.append({"step": step, "split": "TEST", "loss": 0.5 / step, **rate})
    return found


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> dict:
    """The metrics and what else each tracker holds, after its own reader."""
    if PYTHON is None and not HERE:
        pytest.skip("JAXDPO_TRACKERS_PYTHON names no Python with the trackers; .ci/run makes one")
    folder = tmp_path_factory.mktemp("trackers")
    run = folder / "my run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records()))
    (run / "report.html").write_text("<p>report</p>")
    (run / "curves.png").write_bytes(b"png")
    cut = ("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "WANDB_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in cut}
    ran = subprocess.run(
        [PYTHON or sys.executable, str(ROOT / "tests/training/read_trackers.py"), str(run)],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(folder / "trackio"),
             "HOME": str(folder), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads((run / "read.json").read_text())


# The characters that a tracker allows in no name, and are lines there.
FORBIDDEN = {"tensorboard": " ()?", "mlflow": "()?", "wandb": "", "trackio": ""}


@pytest.mark.parametrize("tracker", FORBIDDEN)
def test_every_metric_is_held(read, tracker):
    assert read["said"] == []
    found, written = read["read"][tracker]
    expected: dict[str, dict[str, float]] = {}
    for record in records():
        for name, value in record.items():
            if name not in ("step", "split"):
                named = "".join("_" if c in FORBIDDEN[tracker] else c for c in name)
                expected.setdefault(f"{record['split']}/{named}", {})[str(record["step"])] = value
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if tracker == "tensorboard":
            # It keeps 32 bits.
            values = {step: float(np.float32(value)) for step, value in values.items()}
        assert found[name] == values, name
    assert "loss.beta" in written
    assert tracker == "wandb" or ("report.html" in written and "curves.png" in written)


def test_wandb_keeps_the_page_and_the_curves(read):
    _, written = read["read"]["wandb"]
    assert "report.html" in written and "curves.png" in written


def test_one_that_fails_is_left_out_and_the_others_go_on(tmp_path):
    said, given = [], []
    # A file where the folder of the events would be.
    (tmp_path / "tensorboard").write_text("")
    run = TrackedRun(tmp_path, 0, {}, {})

    def on_metrics(step, split, metrics):
        given.append((step, split, metrics))
        if step == 2:
            raise KeyError("nothing that a run should end for")

    trackers = Trackers(("tensorboard",), run, said.append, on_metrics)
    for step in range(4):
        trackers.write(step, "TRAIN", {"loss": 1.0})
    trackers.publish([tmp_path / "report.html"])
    assert [step for step, *_ in given] == [0, 1, 2]
    assert [text.split(" failed (")[0] for text in said] == [
        "warning: tensorboard",
        "warning: on_metrics",
    ]
    assert "metrics.jsonl has them all" in said[1] and "KeyError" in said[1]


def test_a_tracker_that_is_not_installed_is_named_before_the_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"wandb needs the package wandb.*pip install 'jaxdpo\[wandb\]'"
    ):
        check_trackers(["wandb"])
