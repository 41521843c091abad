"""A manifest vouches for a folder and for itself: no flipped bit of either is believed."""

import json

import numpy as np
import pytest

from jaxdpo.storage.manifest import MANIFEST, whole_manifest, write_manifest


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


def test_a_manifest_of_a_version_before_has_no_digest_of_its_own(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert whole_manifest(folder) == manifest
