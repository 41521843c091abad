"""A model goes to the Hub whole and privately, and goes on where it was cut off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.fake_hub import TOKEN, FakeHub, serve_hub

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run's folder, with a model of two shards and what does not belong to a model."""
    model = tmp_path / "my run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# The card\n")
    for number in (1, 2):
        (model / f"model-{number}.safetensors").write_bytes(os.urandom(2000))
    (model / ".model-1.safetensors.77.tmp").write_text("left over")
    (tmp_path / "my run" / "metrics.jsonl").write_text("not part of the model")
    return tmp_path / "my run"


def run(words: list[str], endpoint: str, token: str | None = TOKEN) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        # The chunked protocol asks a second server for places; the plain one is to be enough here.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": "/nonexistent",
        "JAX_PLATFORMS": "cpu",
    }
    environment.pop("HF_TOKEN", None)
    if token is not None:
        environment["HF_TOKEN"] = token
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=120, env=environment
    )


def push(folder: Path, hub: FakeHub, *words: str) -> subprocess.CompletedProcess:
    return run(["-m", "jaxdpo.push", str(folder), "org/name", *words], hub.url)


def test_the_model_of_a_run_is_uploaded_whole_and_private(run_folder):
    with serve_hub() as hub:
        done = push(run_folder, hub)
        assert done.returncode == 0, done.stderr
        assert hub.visibility == {"org/name": "private"}
        model = run_folder / "model"
        names = {"config.json", "README.md", "model-1.safetensors", "model-2.safetensors"}
        assert hub.files == {name: (model / name).read_bytes() for name in names}
        assert hub.messages == ["Upload my run with jaxdpo"]
        assert f"uploaded: {hub.url}/org/name/commit/" in done.stdout
        # A repository that is there stays as private as it is.
        again = push(run_folder / "model", hub, "private=false", "message=Once more")
        assert again.returncode == 0, again.stderr
        assert hub.visibility == {"org/name": "private"} and hub.messages[1:] == ["Once more"]
        assert len(hub.sent) == 2


def test_an_upload_that_was_cut_off_goes_on(run_folder):
    with serve_hub() as hub:
        hub.accepts = 1
        failed = push(run_folder, hub)
        assert failed.returncode == 2 and hub.files == {} and hub.messages == []
        assert "the same command again goes on where it stopped" in failed.stderr
        [first], hub.accepts = hub.sent, None
        done = push(run_folder, hub)
        assert done.returncode == 0, done.stderr
        # The file that had arrived was not sent again.
        assert hub.sent[0] == first and len(hub.sent) == len(set(hub.sent)) == 2
        assert len(hub.files) == 4


@pytest.mark.parametrize(
    ("words", "token", "said"),
    [
        ([], "hf_wrong", "the Hub refuses this login (401); log in with `hf auth login`"),
        ([], None, "nobody is logged in to the Hub"),
        (["repo=name"], TOKEN, "write org/name"),
        (["folder=nowhere"], TOKEN, "nowhere: holds no model"),
    ],
)
def test_refusals(run_folder, words, token, said):
    with serve_hub() as hub:
        arguments = [f"folder={run_folder}", "repo=org/name", *words]
        done = run(["-m", "jaxdpo.push", *arguments], hub.url, token)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
        assert hub.files == {}


_END_OF_RUN = """
import sys
from pathlib import Path
from jaxdpo.cli.console import Reporter
from jaxdpo.config import load_config
from jaxdpo.runs.folder import RunFolder
from jaxdpo.runs.push import push_run

folder = Path(sys.argv[1])
where = f"training.folder={str(folder)!r}"
settings = ["model.path=m", "data.path=d", where, "export.hub=org/name"]
push_run(load_config(None, settings), RunFolder(folder, True), Reporter())
"""


def test_the_end_of_a_run_outlives_the_hub(run_folder):
    with serve_hub() as hub:
        done = run(["-c", _END_OF_RUN, str(run_folder)], hub.url)
        assert done.returncode == 0, done.stderr
        assert hub.visibility == {"org/name": "private"} and len(hub.files) == 4
        away = hub.url
    # The server is gone now.
    done = run(["-c", _END_OF_RUN, str(run_folder)], away)
    assert done.returncode == 0, done.stderr
    said = done.stdout.replace("\n", "")
    assert (
        "cannot be reached" in said and f"jaxdpo push folder='{run_folder}' repo=org/name" in said
    )
