"""Temporary names: many hosts write one file, and leftovers of dead processes go."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdpo
from jaxdpo.storage.files import replacing
from jaxdpo.storage.temporary import TemporaryFolder, open_temporary, remove_leftovers

ROOT = Path(jaxdpo.__file__).parent.parent


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def die_while_writing(target: Path) -> None:
    """Writes half of a file and of a folder in a process that is gone then."""
    if os.fork() == 0:
        file, _ = open_temporary(target, "w")
        file.write("half")
        file.flush()
        TemporaryFolder(target.with_name("folder"))
        os._exit(0)
    os.wait()


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    target = tmp_path / "about.json"
    die_while_writing(target)
    assert len(names(tmp_path)) == 2
    living, path = open_temporary(target, "w")
    with living, replacing(target) as file:
        file.write("whole")
        assert path.exists()
    assert names(tmp_path) == {"about.json", path.name} | {
        name for name in names(tmp_path) if name.startswith(".folder.")
    }
    folder = TemporaryFolder(tmp_path / "folder")
    assert {name for name in names(tmp_path) if name.startswith(".folder.")} == {folder.path.name}
    remove_leftovers(tmp_path / "folder")
    assert folder.path.exists()
    folder.close()
    # The first writer has closed its file without naming it, and so it is left behind.
    remove_leftovers(target)
    assert names(tmp_path) == {"about.json"}


def test_a_name_with_signs_of_patterns_takes_only_its_own(tmp_path):
    target, other = tmp_path / "a[1]*.json", tmp_path / "a1.json"
    for each in (target, other):
        die_while_writing(each)
    with replacing(target) as file:
        file.write("whole")
    left = {name for name in names(tmp_path) if not name.startswith(".folder.")}
    assert len(left) == 2 and any(name.startswith(".a1.json.") for name in left)


def test_without_locks_what_is_young_stays(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    target = tmp_path / "x"
    die_while_writing(target)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    (left,) = [path for path in tmp_path.iterdir() if path.name.startswith(".x.")]
    remove_leftovers(target)
    assert left.exists()
    os.utime(left, (0, 0))
    remove_leftovers(target)
    assert not left.exists()


_WRITER = """
import json, sys
from pathlib import Path
from jaxdpo.storage.files import replacing
path, me, torn = Path(sys.argv[1]), sys.argv[2], 0
for _ in range(300):
    with replacing(path) as file:
        file.write(json.dumps([me] * (50 if me == "a" else 4000)))
    try:
        json.loads(path.read_text())
    except ValueError:
        torn += 1
sys.exit(torn > 0)
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0,
    reason="only root may make namespaces, and unshare does it",
)
def test_two_containers_with_equal_process_numbers_write_one_file(tmp_path):
    """Each is process 1 of its own namespace: 300 writes each, no error and no torn read."""
    path = tmp_path / "shared.json"
    alone = ["unshare", "--pid", "--fork", "--mount-proc"]
    probe = subprocess.run([*alone, "true"], capture_output=True)
    if probe.returncode != 0:
        pytest.skip("this machine makes no process namespaces")
    writers = [
        subprocess.Popen(
            [*alone, sys.executable, "-c", _WRITER, str(path), me],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in "ab"
    ]
    for writer in writers:
        assert writer.communicate(timeout=120)[1] == ""
        assert writer.returncode == 0
    assert len(set(json.loads(path.read_text()))) == 1
    assert names(tmp_path) == {"shared.json"}
