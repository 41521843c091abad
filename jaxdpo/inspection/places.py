"""Places of pairs in their files, a dozen bytes each."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np


@dataclass(frozen=True, eq=False)
class Places(Sequence[str]):
    """`file:line` of pairs, written out when asked for.

    A million strings would take 100 MB for each kind of finding.

    Attributes:
      files: Names of the files.
      file_N: i32 `[N]`, which of them each pair comes from.
      line_N: i64 `[N]`, its line there; -1 where the name of the file is the whole place.
    """

    files: tuple[str, ...]
    file_N: np.ndarray
    line_N: np.ndarray

    def __len__(self) -> int:
        return len(self.file_N)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Places": ...

    def __getitem__(self, index: int | slice) -> "str | Places":
        if isinstance(index, slice):
            return Places(self.files, self.file_N[index], self.line_N[index])
        file, line = self.files[self.file_N[index]], int(self.line_N[index])
        return file if line < 0 else f"{file}:{line}"

    def take(self, indices: np.ndarray | Sequence[int]) -> "Places":
        """Returns the places of some pairs."""
        chosen = np.asarray(indices, np.int64)
        return Places(self.files, self.file_N[chosen], self.line_N[chosen])


NO_PLACES = Places((), np.zeros(0, np.int32), np.zeros(0, np.int64))


class PlacesWriter:
    """Takes the places of pairs as they come."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._file, self._line = array("i"), array("q")

    def add(self, source: str) -> None:
        """Takes the place of the next pair, as `PreferencePair.source` has it."""
        file, _, line = source.rpartition(":")
        if not line.isdecimal():
            file, line = source, "-1"
        self._file.append(self._number.setdefault(file, len(self._number)))
        self._line.append(int(line))

    def finish(self) -> Places:
        """Returns all places that were taken."""
        return Places(tuple(self._number), np.array(self._file), np.array(self._line))
