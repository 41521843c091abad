"""Preference pairs → token ids that fit, kept on disk; and the whole way from files to them."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxdpo.data.config import DataConfig
from jaxdpo.data.pairs import Split
from jaxdpo.data.reading.bad_lines import BadLines, handle_bad_lines, read_rejects
from jaxdpo.data.reading.reader import Reading, find_weighted
from jaxdpo.data.reading.reports import ReadReport
from jaxdpo.data.reading.sources import digest_of, find_sources
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.pair_store import TokenizedPairs, open_pairs, verify_pairs
from jaxdpo.data.tokenization.shares import find_shares, make_shares, store_whole
from jaxdpo.data.tokenization.storing import REJECTS, SPLITS, VERSIONS, store_pairs
from jaxdpo.errors import UserError
from jaxdpo.storage.cache import mark_used, tidy
from jaxdpo.storage.files import file_digest, json_digest
from jaxdpo.storage.sealed import read_sealed, write_sealed

_ABOUT = "about.json"


@dataclass(frozen=True)
class LoadedPairs:
    """Tokenised pairs by split, and what the file held."""

    splits: dict[Split, TokenizedPairs]
    report: ReadReport


def load_pairs(
    config: DataConfig, chat: Chat, rejects_path: Path | None = None, supervised: bool = False
) -> LoadedPairs:
    """Reads and tokenises the file that the configuration names.

    Args:
      config: Where the pairs are, and how they are read.
      chat: The model's tokenizer and template.
      rejects_path: With `on_error="skip"`, the file that refused lines are written to.
      supervised: Whether the pairs are examples for supervised fine-tuning, without rejected
        completions: `rejected_message` may be missing and is not used.

    Raises:
      UserError: As `read_pairs` does, and for pairs that the chat template refuses.
    """
    # Tokens are found again by the digests of their sources, whatever these are called.
    key = _source_key(config, chat, supervised)
    folder = config.cache_folder() / "pairs" / key
    loaded = _open(folder, key)
    if loaded is None:
        with _writing(folder):
            _store(config, chat, supervised, folder, key)
            tidy(config.cache_folder())
        loaded = _open(folder, key)
        assert loaded is not None, f"{folder} was just written"
    mark_used(folder / _ABOUT)
    handle_bad_lines(read_rejects(folder / REJECTS), config, rejects_path)
    train = loaded.splits["TRAIN"]
    if not len(train):
        raise UserError(
            f"{config.name()}: none of its {loaded.report.pairs['TRAIN']} TRAIN pairs can be "
            f"used:\n{train.report.summary(config.max_length)}"
        )
    return loaded


def _source_key(config: DataConfig, chat: Chat, supervised: bool) -> str:
    """Computes the SHA-256 of all that the tokens of a configuration's sources depend on."""
    memory = config.cache_folder() / "digests"
    sources = [
        (name, weight, [(source.name, digest_of(source, memory)) for source in find_sources(name)])
        for name, weight in config.weights().items()
    ]
    return json_digest([*VERSIONS, chat.fingerprint, supervised, config.reading(), sources])


def _open(folder: Path, key: str) -> LoadedPairs | None:
    """Opens what `_store` stored, if it is there and whole."""
    about = read_sealed(folder / _ABOUT)
    try:
        if about is None or about["key"] != key:
            return None
        if about["rejects"] != file_digest(folder / REJECTS):
            return None
    except OSError:
        return None
    # JSON has lists alone, and a report holds tuples.
    lists = {name: tuple(about["report"][name]) for name in ("leaked", "warnings")}
    report = ReadReport(**{**about["report"], **lists})
    train, test = (open_pairs(folder / split, key) for split in SPLITS)
    if train is None or test is None:
        return None
    return LoadedPairs({"TRAIN": train, "TEST": test}, report)


def verify_stored(folder: Path) -> bool:
    """Tells whether the stored pairs of a folder in the cache are as they were written."""
    about = read_sealed(folder / _ABOUT)
    try:
        if about is None or about["rejects"] != file_digest(folder / REJECTS):
            return False
    except OSError:
        return False
    return all(verify_pairs(folder / split) for split in SPLITS)


def _store(config: DataConfig, chat: Chat, supervised: bool, folder: Path, key: str) -> None:
    """Reads, encodes and stores the pairs that the configuration names, a few at a time.

    Raises:
      UserError: If that cannot be done, or, with `on_error="stop"`, for bad lines.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def finish(report: ReadReport) -> None:
        # Another program may have written to a source while it was read.
        if _source_key(config, chat, supervised) != key:
            raise UserError(f"{config.name()}: changed while it was read; run again")
        about = {
            "key": key,
            "rejects": file_digest(folder / REJECTS),
            "report": dataclasses.asdict(report),
        }
        # Last, since a folder without it counts as unfinished.
        write_sealed(folder / _ABOUT, about)

    processes, found = find_shares(config, supervised, find_weighted(config.weights()))
    if processes > 1:
        shares = make_shares(config, chat, supervised, found)

        def is_whole() -> bool:
            return _open(folder, key) is not None

        store_whole(shares, processes, config, folder, key, is_whole, finish)
        return
    reading = Reading(config.weights(), config, supervised)

    def accept(bad_lines: BadLines, rejected: Counter[str]) -> ReadReport:
        bad_lines.stop(config)
        return reading.report(rejected)

    finish(store_pairs(reading, chat, config, folder, key, accept))


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Leaves no empty folder behind, and says what to do where none can be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); set data.cache_dir to a folder with "
            "room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
