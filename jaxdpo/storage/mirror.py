"""A folder that lives in an object store, and is worked on in a local copy."""

import hashlib
import json
import shutil
import tempfile
import threading
from pathlib import Path, PurePath

from jaxdpo.errors import UserError
from jaxdpo.storage.buckets import LISTING, listed, open_store, put, store_errors, update
from jaxdpo.storage.files import cache_folder, replacing
from jaxdpo.storage.noted import forget_notes
from jaxdpo.storage.urls import written_url


class Mirror:
    """A local copy, and the folder in the store that it stands for.

    The store is what counts: another machine may have gone on from there.

    Args:
      url: The folder in the store.
      last: Names of files that make others count, such as a manifest; they are sent after all
        others and removed before them.
    """

    def __init__(self, url: str | PurePath, last: tuple[str, ...]):
        self.url, self._last = written_url(url), last
        key = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.copy = cache_folder(None) / "mirrors" / key / PurePath(self.url).name
        self._store, self._place = open_store(url)
        self._sent: dict[str, tuple[int, int]] = {}
        # Checkpoints are sent by the thread that writes them.
        self._lock = threading.Lock()

    def pull(self) -> None:
        """Makes the local copy what the store has.

        Raises:
          UserError: If the store cannot be read.
        """
        self.copy.mkdir(parents=True, exist_ok=True)
        with store_errors(self.url, "read"):
            found = listed(self._store, self._place)
            if "" in found:
                raise UserError(f"{self.url}: is a file; name a folder")
            for name in self._files():
                if name not in found:
                    (self.copy / name).unlink()
            update(self._store, self._place, self.copy, found)
        # They are not in the store: another machine may have gone on there.
        forget_notes(self.copy)
        self._sent = {name: self._stamp(name) for name in found}

    def push(self) -> None:
        """Sends what has changed in the local copy, and removes what is no longer in it.

        Raises:
          UserError: If the store refuses, or does not answer.
        """
        with self._lock, store_errors(self.url, "written"):
            here = self._files()
            gone = sorted(self._sent.keys() - set(here), key=lambda name: not self._counts(name))
            for name in gone:
                # What is half removed must not count.
                self._store.rm_file(f"{self._place}/{name}")
                del self._sent[name]
            for name in sorted(here, key=lambda name: (self._counts(name), name)):
                stamp = self._stamp(name)
                if self._sent.get(name) != stamp:
                    self._send(name)
                    self._sent[name] = stamp
            found = listed(self._store, self._place)
            with replacing(self.copy / LISTING) as file:
                json.dump(found, file, indent=1)

    def _counts(self, name: str) -> bool:
        return PurePath(name).name in self._last

    def _send(self, name: str) -> None:
        # Metrics are appended to while they are sent; a copy stands still.
        with tempfile.NamedTemporaryFile() as still:
            source = self.copy / name
            if "checkpoints" in PurePath(name).parts:
                put(self._store, source, f"{self._place}/{name}")
                return
            shutil.copyfile(source, still.name)
            put(self._store, Path(still.name), f"{self._place}/{name}")

    def _files(self) -> list[str]:
        names = [path.relative_to(self.copy) for path in self.copy.rglob("*") if path.is_file()]
        # Hidden ones are locks, listings and what is not yet whole.
        return [str(name) for name in names if not any(part.startswith(".") for part in name.parts)]

    def _stamp(self, name: str) -> tuple[int, int]:
        found = (self.copy / name).stat()
        return found.st_size, found.st_mtime_ns
