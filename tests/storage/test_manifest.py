"""A manifest vouches for a folder and for itself: no flipped bit of either is believed."""

import hashlib
import json

import numpy as np
import pytest

from jaxdpo.storage import manifest as manifests
from jaxdpo.storage.manifest import MANIFEST, whole_manifest, write_manifest, write_part


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "arrays").write_bytes(bytes(range(256)))
    write_manifest(tmp_path, {"step": 200, "run": {"loss": {"beta": 0.1}}, "model": {"é": [1]}})
    return tmp_path


def test_what_was_written_is_read(folder):
    manifest = whole_manifest(folder)
    assert manifest is not None and manifest["step"] == 200
    assert list(manifest["files"]) == ["state/arrays"]


def test_no_flipped_bit_is_believed(folder):
    good, about = (folder / MANIFEST).read_bytes(), whole_manifest(folder)
    assert about is not None
    generator = np.random.default_rng(0)
    for _ in range(300):
        content = bytearray(good)
        content[generator.integers(len(content))] ^= 1 << generator.integers(8)
        (folder / MANIFEST).write_bytes(bytes(content))
        found = whole_manifest(folder)
        # A flip in white space, or in the name of the digest, changes nothing that counts.
        assert found is None or {key: found.get(key) for key in about} == about


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b'{"files": 3}', b"\xff\xfe"])
def test_what_is_no_manifest_is_none(folder, content):
    (folder / MANIFEST).write_bytes(content)
    assert whole_manifest(folder) is None


def test_each_process_digests_what_it_wrote(tmp_path):
    for name in ("state/ocdbt.process_0/d/a", "state/ocdbt.process_1/d/b", "state/_METADATA"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    write_part(tmp_path, 1, 2)
    size = write_manifest(tmp_path, {"step": 3}, 2)
    assert size == sum(
        path.stat().st_size for path in (tmp_path / "state").rglob("*") if path.is_file()
    )
    # One process, two and three all find it whole, and nothing is left that it does not list.
    for count in (1, 2, 3):
        assert all(whole_manifest(tmp_path, index, count) for index in range(count))
    manifest = whole_manifest(tmp_path)
    assert manifest is not None and len(manifest["files"]) == 3
    expected = hashlib.sha256(b"state/ocdbt.process_1/d/b").hexdigest()
    assert manifest["files"]["state/ocdbt.process_1/d/b"]["sha256"] == expected
    (tmp_path / "state/ocdbt.process_1/d/b").write_bytes(b"STATE/ocdbt.process_1/d/b")
    assert whole_manifest(tmp_path, 0, 2) and whole_manifest(tmp_path, 1, 2) is None
    assert whole_manifest(tmp_path) is None


def test_part_that_never_comes_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests._read_part, "__defaults__", (0.2,))
    with pytest.raises(OSError, match="timed out"):
        write_manifest(tmp_path, {"step": 3}, 2)
    assert whole_manifest(tmp_path) is None


def test_a_manifest_of_a_version_before_has_no_digest_of_its_own(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert whole_manifest(folder) == manifest
