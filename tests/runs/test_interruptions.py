"""Runs as processes: killed, stopped, continued, refused, and over two processes."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.numpy import load_file

from jaxdpo.config import load_config
from jaxdpo.errors import UserError
from jaxdpo.runs.convert import ConvertConfig, convert
from jaxdpo.runs.fit import fit
from jaxdpo.training.writers import read_metrics
from tests.devices.processes import Process, assert_no_stack, free_port, launched, processes
from tests.folders import write_model, write_pairs
from tests.runs.trainings import Starter, Training, starting

# More kills than the suite has time for: JAXDPO_TEST_KILLS=20 python -m pytest tests/runs
KILLS = int(os.environ.get("JAXDPO_TEST_KILLS", "1"))
EVERYTHING = os.environ.get("JAXDPO_TEST_PROCESSES") == "all"
STEPS = 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 100, test=8)
    return folder


def settings(inputs: Path, run: Path, *overrides: str) -> list[str]:
    return [
        f"model.path={inputs / 'model'}",
        f"data.path={inputs / 'pairs.jsonl'}",
        f"data.cache_dir={inputs / 'cache'}",
        f"training.folder={run}",
        f"training.max_steps={STEPS}",
        "training.epochs=9",
        "training.completions=0",
        "batch.size=8",
        "optimizer.learning_rate=1e-3",
        "training.evaluate_every=10",
        "checkpoint.every=4",
        *overrides,
    ]


def command(inputs: Path, run: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "jaxdpo.train", *settings(inputs, run, *overrides)]


def environment(inputs: Path, devices: int = 1, **more: str) -> dict[str, str]:
    return os.environ | {
        # Compiled in half the time: what is tested here has nothing to do with how fast it runs.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(inputs / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **more,
    }


@pytest.fixture(scope="module")
def starter(inputs):
    with starting(environment(inputs)) as started:
        yield started


def start(starter: Starter, inputs: Path, run: Path, log: str = "log") -> Training:
    run.parent.mkdir(exist_ok=True)
    return starter.start(settings(inputs, run), environment(inputs), run.parent / log)


def metrics(run: Path) -> list[dict]:
    """The run's metrics without what depends on the clock or the machine."""
    timed = ("step_seconds", "pairs_per_second", "peak_memory_gib")
    timed += ("checkpoint/seconds", "checkpoint/held_seconds", "checkpoint/gib")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if name not in timed} for record in records
    ]


@pytest.fixture(scope="module")
def uninterrupted(inputs, tmp_path_factory):
    """The command itself, from its start on."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finished = subprocess.run(
        command(inputs, run),
        env=environment(inputs),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return run


def assert_same_end(run: Path, uninterrupted: Path) -> None:
    exported = "model/model.safetensors"
    assert (run / exported).read_bytes() == (uninterrupted / exported).read_bytes()
    assert metrics(run) == metrics(uninterrupted)


def test_the_exported_model_has_a_card(inputs, uninterrupted, tmp_path):
    text = (uninterrupted / "model" / "README.md").read_text()
    card: Any = ModelCard(text)  # the stubs do not know the fields of its data
    assert (card.data.library_name, card.data.base_model) == ("transformers", None)
    assert "dpo" in card.data.tags
    data = json.loads((uninterrupted / "data.json").read_text())
    assert (data["TRAIN"]["pairs"], data["TEST"]["pairs"]) == (92, 8)
    for split, of_split in data.items():
        assert f"| {split} | {of_split['pairs']} | `{of_split['sha256']}` |" in text
    before, *_, after = [each for each in metrics(uninterrupted) if each["split"] == "TEST"]
    assert (before["step"], after["step"]) == (0, STEPS)
    for name in ("rewards/margins", "rewards/accuracies", "loss"):
        assert f"| {name} | {before[name]:.4g} | {after[name]:.4g} |" in text
    settings = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    assert settings["optimizer"]["learning_rate"] == 1e-3
    assert settings["model"]["path"] == "model" and settings["data"]["path"] == "pairs.jsonl"
    assert f"jax {jax.__version__}" in text
    for machine in (str(inputs), str(uninterrupted), socket.gethostname(), str(Path.home())):
        assert machine not in text

    convert(ConvertConfig(source=str(uninterrupted), target=str(tmp_path / "again")))
    assert (tmp_path / "again" / "README.md").read_text() == text
    earlier = uninterrupted / "checkpoints" / "step_00000016"
    convert(ConvertConfig(source=str(earlier), target=str(tmp_path / "earlier")))
    assert ", 16 optimizer steps" in (tmp_path / "earlier" / "README.md").read_text()


def test_time_and_bytes_of_checkpoints_and_the_share_of_steps(uninterrupted):
    records = read_metrics(uninterrupted)
    saved = [each for each in records if "checkpoint/seconds" in each]
    # Two of the four may end while the same step is under way.
    assert len(saved) >= 2
    assert all(0 < each["checkpoint/held_seconds"] < each["checkpoint/seconds"] for each in saved)
    manifest = json.loads(
        (uninterrupted / "checkpoints" / "step_00000016" / "manifest.json").read_text()
    )
    size = sum(entry["size"] for entry in manifest["files"].values()) / 2**30
    assert saved[-1]["checkpoint/gib"] == pytest.approx(size, rel=0.05)
    found = json.loads((uninterrupted / "summary.json").read_text())["goodput"]
    steps = [each["step_seconds"] for each in records if "step_seconds" in each]
    assert found["step_seconds"] == pytest.approx(sum(steps))
    assert sum(steps) < found["seconds"] < 300
    assert found["share"] == pytest.approx(sum(steps) / found["seconds"])


def test_killed_and_stopped_it_ends_bit_for_bit_the_same(starter, inputs, uninterrupted, tmp_path):
    """Killed at random moments, then stopped, killed in the middle of a checkpoint, to the end."""
    run, rng = tmp_path / "run", random.Random(int(os.environ.get("JAXDPO_TEST_SEED", "0")))
    records, killed = run / "metrics.jsonl", 0
    for kill in range(KILLS):
        process = start(starter, inputs, run)
        # At a random step and a random moment after it. The last steps are left out, behind which
        # a process may have ended.
        step = rng.randint(1, STEPS // 3)
        while process.runs and not reached(records, step):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        killed += ended_by_kill(process)
        exported = run / "model"
        if exported.exists():
            # Whatever stands under the exported model's name is whole.
            assert load_file(exported / "model.safetensors"), f"after {kill} kills"
    process = start(starter, inputs, run)
    before = records.read_text() if records.exists() else ""
    wait_until(lambda: takes_steps(records, before), [process])
    process.signal(signal.SIGTERM)
    assert process.status(120) == 143, process.output
    assert "SIGTERM: saved after step" in process.output
    assert not (run / "model").exists()
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert saved and all((run / "checkpoints" / name / "manifest.json").exists() for name in saved)
    process = start(starter, inputs, run)
    # As soon as a new checkpoint begins to appear, when most of it is not written.
    wait_until(lambda: begun_after(run / "checkpoints", 2 * STEPS // 3), [process])
    killed += ended_by_kill(process)
    assert killed, "every process had ended before it was killed"
    finished = start(starter, inputs, run)
    assert finished.status() == 0, finished.output
    assert "continuing after step" in finished.output
    assert_same_end(run, uninterrupted)


def ended_by_kill(process: Training) -> bool:
    """Kills a process; tells whether it was still running."""
    if process.runs:
        process.signal(signal.SIGKILL)
    assert process.status() in (0, -signal.SIGKILL), process.output
    return process.status() == -signal.SIGKILL


def reached(records: Path, step: int) -> bool:
    """Tells whether a run has recorded a step."""
    return records.exists() and f'{{"step": {step}, ' in records.read_text()


def takes_steps(records: Path, before: str) -> bool:
    """Tells whether a run has recorded a step since its records were these."""
    text = records.read_text() if records.exists() else ""
    return '"TRAIN"' in text.rpartition("{")[2] and text not in before


def begun_after(checkpoints: Path, step: int) -> bool:
    """Tells whether a checkpoint of a later step is there that does not count yet."""
    return any(
        int(path.name[-8:]) > step and not (path / "manifest.json").exists()
        for path in checkpoints.glob("step_*")
    )


def test_a_finished_run_says_so(inputs, uninterrupted, capsys):
    before = (uninterrupted / "metrics.jsonl").stat().st_mtime_ns
    fit(load_config(None, settings(inputs, uninterrupted)))
    assert "this run is finished" in capsys.readouterr().out
    assert (uninterrupted / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.beta=0.2", "loss.beta was 0.1, is now 0.2"),
        ("batch.size=4", "batch.size was 8, is now 4"),
        ("training.seed=3", "training.seed was 0, is now 3"),
    ],
)
def test_another_configuration_is_refused(inputs, uninterrupted, override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        fit(load_config(None, settings(inputs, uninterrupted, override)))


def test_other_data_is_refused(inputs, uninterrupted, tmp_path):
    run, data = tmp_path / "run", tmp_path / "pairs.jsonl"
    shutil.copytree(uninterrupted, run)
    (run / "summary.json").unlink()
    data.write_text((inputs / "pairs.jsonl").read_text().replace("house", "horse"))
    with pytest.raises(
        UserError,
        match=r"started from other inputs: .*(TEST|TRAIN) pairs \(data.path\) was '\w+', is now "
        r"'\w+'",
    ):
        fit(load_config(None, settings(inputs, run, f"data.path={data}")))


def test_two_runs_cannot_share_a_folder(starter, inputs, tmp_path):
    run = tmp_path / "run"
    first = start(starter, inputs, run)
    wait_until((run / "config.yaml").exists, [first])
    # Held still, so that it does not finish before the second asks for the folder.
    first.signal(signal.SIGSTOP)
    with pytest.raises(UserError, match="another process is writing this run"):
        fit(load_config(None, settings(inputs, run)))
    first.end()


IN_TWO = ("mesh.data=2", "mesh.fsdp=2", "batch.row_length=400")


@contextlib.contextmanager
def two_processes(starter: Starter, inputs: Path, run: Path) -> Iterator[list[Training]]:
    """Starts a run of two processes of two devices each, each the child that computes."""
    port = free_port()
    run.parent.mkdir(exist_ok=True)
    started = []
    for number in range(2):
        variables = launched(number, 2, port) | environment(inputs, devices=2)
        variables["JAXDPO_PARENT"] = str(starter.pid)
        log = run.parent / f"{number}.log"
        started.append(starter.start(settings(inputs, run, *IN_TWO), variables, log))
    try:
        yield started
    finally:
        for each in started:
            each.end()


@pytest.fixture(scope="module")
def uninterrupted_two(starter, inputs, tmp_path_factory):
    run = tmp_path_factory.mktemp("two") / "run"
    with two_processes(starter, inputs, run) as started:
        statuses = [each.status() for each in started]
        assert statuses == [0, 0], "\n".join(each.output for each in started)
        # What to type next is said once, and not by every process.
        assert ["next: jaxdpo evaluate" in each.output for each in started] == [True, False]
    return run


def test_two_processes_train_as_one(uninterrupted, uninterrupted_two):
    """Two processes of two devices each: the same losses as one process of one device."""
    ours, expected = metrics(uninterrupted_two), metrics(uninterrupted)
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        assert one["step"] == other["step"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["rewards/margins"] == pytest.approx(other["rewards/margins"], abs=1e-3)
    whole = load_file(uninterrupted / "model" / "model.safetensors")
    for name, tensor in load_file(uninterrupted_two / "model" / "model.safetensors").items():
        assert tensor == pytest.approx(whole[name], abs=2e-3), name


def test_one_process_reads_what_two_saved(uninterrupted_two, tmp_path):
    """On eight devices, of what two processes had on four: the weights that these exported."""
    manifest = json.loads(
        (uninterrupted_two / "checkpoints" / f"step_{STEPS:08d}" / "manifest.json").read_text()
    )
    # Each of the two wrote shards, and the manifest has the digests of both.
    for process in range(2):
        assert any(f"ocdbt.process_{process}/" in name for name in manifest["files"])
    source = uninterrupted_two / "checkpoints" / f"step_{STEPS:08d}"
    convert(ConvertConfig(source=str(source), target=str(tmp_path / "model")))
    expected = load_file(uninterrupted_two / "model" / "model.safetensors")
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert (tensor == expected[name]).all(), name


@pytest.mark.skipif(not EVERYTHING, reason="set JAXDPO_TEST_PROCESSES=all: takes half a minute")
def test_two_processes_continue_what_one_saved(starter, inputs, uninterrupted, tmp_path):
    run = tmp_path / "two" / "run"
    shutil.copytree(uninterrupted, run)
    (run / "summary.json").unlink()
    for name in ("model", f"checkpoints/step_{STEPS:08d}"):
        shutil.rmtree(run / name)
    with two_processes(starter, inputs, run) as started:
        assert [each.status() for each in started] == [0, 0], started[0].output
        assert "continuing after step 16" in started[0].output
    whole = load_file(uninterrupted / "model" / "model.safetensors")
    for name, tensor in load_file(run / "model" / "model.safetensors").items():
        assert tensor == pytest.approx(whole[name], abs=2e-3), name


def test_two_processes_stopped_end_bit_for_bit_the_same(
    starter, inputs, uninterrupted_two, tmp_path
):
    """SIGTERM to one of them, then to the end."""
    run = tmp_path / "run"
    with two_processes(starter, inputs, run) as started:
        wait_until(lambda: reached(run / "metrics.jsonl", 2), started)
        started[1].signal(signal.SIGTERM)
        assert [each.status(60) for each in started] == [143, 143], started[0].output
        for each in started:
            assert "SIGTERM to process 1: saved after step" in each.output
            assert_no_stack(each)
    assert any((run / "checkpoints").glob("step_*/manifest.json"))
    assert not (run / "model").exists()
    finish_in_two(starter, inputs, run)
    assert_same_end(run, uninterrupted_two)


@pytest.mark.skipif(not EVERYTHING, reason="set JAXDPO_TEST_PROCESSES=all: takes a minute")
def test_two_processes_killed_end_bit_for_bit_the_same(
    starter, inputs, uninterrupted_two, tmp_path
):
    """The death of the one that coordinates, with the parents that put it into words."""
    run = tmp_path / "run"
    words = command(inputs, run, *IN_TWO)
    with processes(tmp_path, [words, words], more=environment(inputs, devices=2)) as started:
        wait_until(lambda: reached(run / "metrics.jsonl", 6), started)
        started[0].signal(signal.SIGKILL, worker=True)
        assert [each.status(60) for each in started] == [137, 75]
        assert "process 0 at 127.0.0.1" in started[1].output
        assert_no_stack(started[1])
    finish_in_two(starter, inputs, run)
    assert_same_end(run, uninterrupted_two)


def finish_in_two(starter: Starter, inputs: Path, run: Path) -> None:
    with two_processes(starter, inputs, run) as started:
        assert [each.status() for each in started] == [0, 0], started[0].output
        assert "continuing after step" in started[0].output


def wait_until(condition: Callable[[], bool], started: Sequence[Training | Process]) -> None:
    until = time.monotonic() + 200
    while not condition():
        assert all(each.runs for each in started), started[0].output
        assert time.monotonic() < until, started[0].output
        time.sleep(0.002)
