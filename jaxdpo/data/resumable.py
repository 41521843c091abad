"""JSON Lines files that an interrupted command continues.

answers.jsonl            every line, in order: there when all are
answers.jsonl.partial    the lines so far, as they came
answers.settings.json    what the lines depend on; other settings are refused
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from pydantic import ValidationError

from jaxdpo.data.generations import Generation, load_lines
from jaxdpo.errors import UserError
from jaxdpo.storage.continuation import keep_settings
from jaxdpo.storage.files import replacing

Line = TypeVar("Line", bound=Generation)


class ResumableLines(Generic[Line]):
    """The lines of a file that is being written, each found by its key."""

    def __init__(self, path: Path, kept: Sequence[Line], key: Callable[[Line], Hashable]) -> None:
        self._path, self._kept, self._key = path, kept, key
        # A line that was written twice (two processes, a copied file) counts once, the last one.
        self._by_key: dict[Hashable, Line] = {key(line): line for line in kept}
        self._partial: IO[str] | None = None

    def __contains__(self, key: Hashable) -> bool:
        return key in self._by_key

    def add(self, line: Line) -> None:
        """Appends a line, which a process that is killed from now on does not lose."""
        with _naming(self._path):
            if self._partial is None:
                self._partial = open(partial_of(self._path), "a", encoding="utf-8")  # noqa: SIM115
            self._partial.write(line.line())
            # Flushed, it is the operating system's, and survives this process.
            self._partial.flush()
        self._by_key[self._key(line)] = line

    def finish(self, keys: Sequence[Hashable]) -> list[Line]:
        """Puts the whole file in the place of the lines so far.

        Args:
          keys: The key of every line that the file is to hold, in order.

        Returns:
          The lines, in that order.
        """
        self.close()
        lines = [self._by_key[key] for key in keys]
        # A file that holds just these lines stays as it is, with its time of change.
        with _naming(self._path):
            if lines != self._kept or not self._path.exists():
                with replacing(self._path) as file:
                    file.writelines(line.line() for line in lines)
            partial_of(self._path).unlink(missing_ok=True)
        return lines

    def close(self) -> None:
        """Closes the file of the lines so far, if one was opened."""
        if self._partial is not None:
            self._partial.close()
            self._partial = None


@contextmanager
def resume_lines(
    path: Path, line_type: type[Line], key: Callable[[Line], Hashable], settings: dict[str, Any]
) -> Iterator[ResumableLines[Line]]:
    """Opens a file of lines that may have been begun before.

        with resume_lines(path, Generation, lambda line: line.id, {"seed": 0}) as lines:
            for prompt in prompts:
                if prompt.id not in lines:
                    lines.add(answer(prompt))
            lines.finish([prompt.id for prompt in prompts])

    Args:
      path: The file; those beside it are named after it.
      line_type: The type of its lines.
      key: The key of a line; lines of equal keys are the same line.
      settings: Everything that the lines depend on, as JSON has it.

    Raises:
      UserError: If the file was begun with other settings, or cannot be read or written.
    """
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        keep_settings(
            path.with_suffix(".settings.json"),
            settings,
            f"{path} belongs to other settings",
            "write to a new place",
        )
        kept = load_lines(path, line_type) if path.exists() else []
        kept += read_partial(partial_of(path), line_type)
    lines = ResumableLines(path, kept, key)
    try:
        yield lines
    finally:
        lines.close()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file in what the operating system refuses."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def partial_of(path: Path) -> Path:
    """Returns where the lines of a file stand until all are there."""
    return path.with_name(path.name + ".partial")


def read_partial(path: Path, line_type: type[Line]) -> list[Line]:
    """Reads the lines that were written before an interruption.

    A line that was cut off is removed from the file, so that others may follow.
    """
    if not path.exists():
        return []
    # The process may have ended within a line; all before it is whole, for lines are appended.
    whole, found = 0, []
    content = path.read_bytes()
    for line in content.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            found.append(line_type.model_validate_json(line))
        except ValidationError:
            break
        whole += len(line)
    if whole < len(content):
        with open(path, "r+b") as file:
            file.truncate(whole)
    return found
