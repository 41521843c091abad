"""Preference pairs → token ids that fit, kept on disk; and the whole way from files to them."""

import contextlib
import dataclasses
import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jaxdpo.data.bad_pair import BadLine, BadPair, bad_line
from jaxdpo.data.config import DataConfig
from jaxdpo.data.pairs import PreferencePair, Split
from jaxdpo.data.reading.bad_lines import BadLines, handle_bad_lines, read_rejects
from jaxdpo.data.reading.reader import Met, Reading
from jaxdpo.data.reading.reports import ReadReport, TokenizeReport
from jaxdpo.data.reading.sources import digest_of, find_sources, raw_of
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.pair_encoding import EncodedPair
from jaxdpo.data.tokenization.pair_store import (
    FORMAT_VERSION,
    UNKNOWN,
    PairWriter,
    TokenizedPairs,
    open_pairs,
    verify_pairs,
)
from jaxdpo.data.tokenization.truncation import truncate
from jaxdpo.errors import UserError
from jaxdpo.storage.cache import mark_used, tidy
from jaxdpo.storage.files import file_digest, json_digest, replacing
from jaxdpo.storage.sealed import read_sealed, write_sealed

# Part of every key: raise it when the same files would be read as other pairs.
READING_VERSION = 2
_SPLITS: tuple[Split, ...] = ("TRAIN", "TEST")
_REJECTS, _ABOUT = "rejects.jsonl", "about.json"
# Pairs that are encoded together, and how many such batches are worked on at a time: one is
# rendered while the tokenizer's own threads encode another.
_BATCH = 128
_THREADS = 2


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
    handle_bad_lines(read_rejects(folder / _REJECTS), config, rejects_path)
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
    read = {"format", "columns", "ranked_margin", "test_fraction", "max_length", "turns"}
    versions = [FORMAT_VERSION, READING_VERSION, chat.fingerprint, supervised]
    state = [*versions, config.model_dump(include=read), sources]
    return json_digest(state)


def _open(folder: Path, key: str) -> LoadedPairs | None:
    """Opens what `_store` stored, if it is there and whole."""
    about = read_sealed(folder / _ABOUT)
    try:
        if about is None or about["key"] != key:
            return None
        if about["rejects"] != file_digest(folder / _REJECTS):
            return None
    except OSError:
        return None
    # JSON has lists alone, and a report holds tuples.
    lists = {name: tuple(about["report"][name]) for name in ("leaked", "warnings")}
    report = ReadReport(**{**about["report"], **lists})
    train, test = (open_pairs(folder / split, key) for split in _SPLITS)
    if train is None or test is None:
        return None
    return LoadedPairs({"TRAIN": train, "TEST": test}, report)


def verify_stored(folder: Path) -> bool:
    """Tells whether the stored pairs of a folder in the cache are as they were written."""
    about = read_sealed(folder / _ABOUT)
    try:
        if about is None or about["rejects"] != file_digest(folder / _REJECTS):
            return False
    except OSError:
        return False
    return all(verify_pairs(folder / split) for split in _SPLITS)


def _store(config: DataConfig, chat: Chat, supervised: bool, folder: Path, key: str) -> None:
    """Reads, encodes and stores the pairs that the configuration names, a few at a time.

    Raises:
      UserError: If that cannot be done, or, with `on_error="stop"`, for bad lines.
    """
    reading = Reading(config.weights(), config, supervised)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        bad_lines = BadLines(stack.enter_context(replacing(folder / _REJECTS)))
        writers: dict[Split, _Writer] = {
            split: _Writer(stack.enter_context(PairWriter(folder / split, key)), chat, config)
            for split in _SPLITS
        }
        # Bad lines are written even where they stop the run, so that all can be looked at at once.
        rejected = _encode(reading, chat, writers, bad_lines, stops=config.on_error == "stop")
        bad_lines.stop(config)
        report = reading.report(rejected)
        for writer in writers.values():
            writer.finish()
    # Another program may have written to a source while it was read.
    if _source_key(config, chat, supervised) != key:
        raise UserError(f"{config.name()}: changed while it was read; run again")
    # Last, since a folder without it counts as unfinished.
    about = {
        "key": key,
        "rejects": file_digest(folder / _REJECTS),
        "report": dataclasses.asdict(report),
    }
    write_sealed(folder / _ABOUT, about)


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


def _encode(
    items: Iterable[Met | BadLine],
    chat: Chat,
    writers: Mapping[Split, "_Writer"],
    bad_lines: BadLines,
    stops: bool,
) -> Counter[str]:
    """Encodes and stores pairs in their order.

    Args:
      items: What was met in the data.
      chat: What encodes the pairs.
      writers: What stores them, by split.
      bad_lines: Takes the bad lines, and those that cannot be encoded.
      stops: Whether bad lines mean that nothing will be trained: what is read after one is not
        encoded.

    Returns:
      The bad lines that came in, by code.
    """
    rejected: Counter[str] = Counter()
    for met, encoded in _encoded(items, chat, stops):
        if isinstance(met, BadLine):
            rejected[met.code] += 1
            bad_lines.add(met)
        elif isinstance(encoded, BadPair):
            writers[met.pair.split].refused.append(met.pair.source)
            bad_lines.add(_bad_line(met, encoded))
        elif encoded is not None:
            writers[met.pair.split].add(met.pair, encoded)
    return rejected


def _encoded(
    items: Iterable[Met | BadLine], chat: Chat, stops: bool
) -> Iterator[tuple[Met | BadLine, EncodedPair | BadPair | None]]:
    """Yields what comes in, pairs with their tokens or why they have none."""
    items = iter(items)
    waiting: deque[tuple[list[Met | BadLine], Future]] = deque()
    spoilt = False
    with ThreadPoolExecutor(_THREADS) as pool:
        while batch := list(itertools.islice(items, _BATCH)):
            pairs = [met.pair for met in batch if isinstance(met, Met)]
            # Nothing will be trained, but reading goes on: all bad lines are named, not the first.
            spoilt = spoilt or (stops and len(pairs) < len(batch))
            waiting.append((batch, pool.submit(chat.encode_pairs, [] if spoilt else pairs)))
            # Results leave in the order of the data, and few batches are held at a time.
            if len(waiting) > _THREADS:
                yield from _beside(*waiting.popleft())
        while waiting:
            yield from _beside(*waiting.popleft())


def _beside(
    batch: Sequence[Met | BadLine], future: Future
) -> Iterator[tuple[Met | BadLine, EncodedPair | BadPair | None]]:
    encoded = iter(future.result())
    for met in batch:
        yield met, None if isinstance(met, BadLine) else next(encoded, None)


class _Writer:
    """Fits pairs of one split to size and stores them, keeping count of what became of them.

    Attributes:
      refused: `file:line` of pairs that could not be encoded.
    """

    def __init__(self, out: PairWriter, chat: Chat, config: DataConfig) -> None:
        self._out, self._chat, self._max_length = out, chat, config.max_length
        self._outcomes: defaultdict[str, list[str]] = defaultdict(list)
        self._count = 0
        self.refused: list[str] = []

    def add(self, pair: PreferencePair, encoded: EncodedPair) -> None:
        """Stores one pair, if it can be made to fit."""
        truncated = truncate(pair, encoded.tokens, self._chat, self._max_length)
        if truncated.outcome != "whole":
            self._outcomes[truncated.outcome].append(pair.source)
        for decision in ("spelled_control", "reopened", "ids_unused"):
            if getattr(encoded, decision):
                self._outcomes[decision].append(pair.source)
        if truncated.tokens is not None:
            scores = pair.scores or UNKNOWN
            self._out.add(
                truncated.tokens, pair.source, pair.metadata, scores, pair.label, pair.prompt
            )
            self._count += 1

    def finish(self) -> None:
        """Puts what was stored in its place."""
        seen = {outcome: tuple(sources) for outcome, sources in self._outcomes.items()}
        self._out.finish(TokenizeReport(self._count, rejected=tuple(self.refused), **seen))


def _bad_line(met: Met, bad: BadPair) -> BadLine:
    file = met.pair.source.removesuffix(f":{met.record.line}")
    return bad_line(file, met.record.line, bad, raw_of(met.record))
