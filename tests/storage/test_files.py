"""Folders moved and files replaced on file systems that lack what others have."""

import errno
import os
import stat

import pytest

from jaxdpo.errors import UserError
from jaxdpo.hub.export import MANIFEST, exporting
from jaxdpo.storage.files import cache_folder, move_folder, replacing, sync_folder


def without(call, code, refuses=lambda *args: True):
    """A system call as a mount answers it that has no such operation."""

    def refusing(*args, **options):
        if refuses(*args):
            raise OSError(code, os.strerror(code))
        return call(*args, **options)

    return refusing


def is_folder(path, *_) -> bool:
    return stat.S_ISDIR(os.stat(path).st_mode)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EMFILE])
def test_folder_that_cannot_be_renamed_is_moved_file_by_file(tmp_path, monkeypatch, code):
    source, order = tmp_path / "a", []
    (source / "deep").mkdir(parents=True)
    for name in ("config.json", "deep/er", "weights"):
        (source / name).write_text(name)
    replace = os.replace
    monkeypatch.setattr(os, "rename", without(os.rename, code, is_folder))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append(new.name), replace(old, new)))
    move_folder(source, tmp_path / "b", last=["config.json"])
    assert not source.exists()
    assert {path.name for path in (tmp_path / "b").rglob("*") if path.is_file()} == {*order}
    assert (tmp_path / "b" / "deep" / "er").read_text() == "deep/er"
    assert order[-1] == "config.json"


def test_other_errors_of_a_rename_are_errors(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(os, "rename", without(os.rename, errno.EACCES))
    with pytest.raises(PermissionError):
        move_folder(tmp_path / "a", tmp_path / "b")


def test_export_where_folders_are_neither_renamed_nor_synced(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "rename", without(os.rename, errno.ENOSYS, is_folder))
    monkeypatch.setattr(
        os, "fsync", without(os.fsync, errno.EINVAL, lambda f: stat.S_ISDIR(os.fstat(f).st_mode))
    )
    for content in ("first", "second"):
        with exporting(tmp_path / "model") as folder:
            (folder / "config.json").write_text(content)
    assert (tmp_path / "model" / "config.json").read_text() == "second"
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    assert (tmp_path / "model" / MANIFEST).exists()


def test_fsync_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", without(os.fsync, errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)


def test_two_writers_with_the_same_process_number(tmp_path, monkeypatch):
    """Two containers on one file system may have it."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with replacing(tmp_path / "f") as one:
        one.write("one")
        with replacing(tmp_path / "f") as other:
            other.write("other")
        assert (tmp_path / "f").read_text() == "other"
    assert (tmp_path / "f").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_user_without_a_home(monkeypatch):
    monkeypatch.delenv("JAXDPO_CACHE", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(UserError, match="this user has no home folder; set JAXDPO_CACHE, or"):
        cache_folder(None)
