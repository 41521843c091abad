"""A run whose model, data and folder lie in a bucket: killed, continued elsewhere, converted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxdpo.storage.buckets import fetch, open_store, send
from tests.run_configs import write_inputs
from tests.runs.test_interruptions import metrics
from tests.storage.stores import gcs_store, s3_store
from tests.storage.test_buckets import PACKAGES, environment

if "JAXDPO_TEST_BUCKETS" not in os.environ:
    pytest.skip("trains four times: set JAXDPO_TEST_BUCKETS=1", allow_module_level=True)


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request, tmp_path_factory):
    """The URL of a bucket that holds a model and pairs."""
    for package in PACKAGES[request.param]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder, 60, test=8)
    with (
        s3_store() if request.param == "s3" else gcs_store() as access,
        environment(access | {"JAXDPO_CACHE": str(folder / "cache")}),
    ):
        store, _ = open_store(f"{request.param}://bucket")
        store.mkdir("bucket")
        url = f"{request.param}://bucket"
        send(folder / "model", f"{url}/model", last=["config.json"])
        store.put_file(str(folder / "pairs.jsonl"), "bucket/pairs.jsonl")
        yield url


def command(bucket: str, run: str) -> list[str]:
    return [
        *(sys.executable, "-m", "jaxdpo.train"),
        *(f"model.path={bucket}/model", f"data.path={bucket}/pairs.jsonl"),
        *(f"training.folder={run}", "training.max_steps=14", "training.epochs=9"),
        *("training.completions=0", "batch.size=4", "checkpoint.every=4"),
    ]


def variables(tmp_path: Path, cache: str) -> dict[str, str]:
    """The environment of a machine with a cache of its own."""
    return os.environ | {
        "JAXDPO_CACHE": str(tmp_path / cache),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def run_to_end(words: list[str], environment: dict[str, str], where: Path) -> str:
    ended = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=300, cwd=where
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_run_is_killed_and_continued_on_another_machine(bucket, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    whole = tmp_path / "whole"
    run_to_end(command(bucket, str(whole)), variables(tmp_path, "one"), here)
    run = f"{bucket}/runs/first"
    store, place = open_store(run)
    process = subprocess.Popen(
        command(bucket, run),
        env=variables(tmp_path, "one"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=here,
    )
    until = time.monotonic() + 200
    while not store.exists(f"{place}/checkpoints/step_00000004/manifest.json"):
        assert process.poll() is None and time.monotonic() < until
        store.invalidate_cache()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = run_to_end(command(bucket, run), variables(tmp_path, "other"), here)
    assert "continuing after step" in said
    found = fetch(run)
    model = "model/model.safetensors"
    assert (found / model).read_bytes() == (whole / model).read_bytes()
    assert metrics(found) == metrics(whole)
    # It is as finished on the first machine.
    assert "this run is finished" in run_to_end(
        command(bucket, run), variables(tmp_path, "one"), here
    )
    target = f"{bucket}/converted"
    words = [sys.executable, "-m", "jaxdpo.convert", f"source={run}", f"target={target}"]
    run_to_end([*words, "check=true"], variables(tmp_path, "one"), here)
    assert (fetch(target) / "model.safetensors").read_bytes() == (whole / model).read_bytes()
    # Nothing was written beside, as a folder named like the URL.
    assert list(here.iterdir()) == []
