"""Pairs that are read → pairs that are encoded, made to fit, and stored."""

import contextlib
import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from jaxdpo.data.bad_pair import BadLine, BadPair, bad_line
from jaxdpo.data.config import DataConfig
from jaxdpo.data.pairs import PreferencePair, Split
from jaxdpo.data.reading.bad_lines import BadLines
from jaxdpo.data.reading.reader import Met, Reading
from jaxdpo.data.reading.reports import TokenizeReport
from jaxdpo.data.reading.sources import raw_of
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.pair_encoding import EncodedPair
from jaxdpo.data.tokenization.pair_store import FORMAT_VERSION, UNKNOWN, PairWriter
from jaxdpo.data.tokenization.truncation import truncate
from jaxdpo.storage.files import replacing

# Part of every key: raise it when the same files would be read as other pairs.
READING_VERSION = 2
VERSIONS = (FORMAT_VERSION, READING_VERSION)
SPLITS: tuple[Split, ...] = ("TRAIN", "TEST")
REJECTS = "rejects.jsonl"
# Pairs that are encoded together, and how many such batches are worked on at a time: one is
# rendered while the tokenizer's own threads encode another.
_BATCH = 128
_THREADS = 2

_Accepted = TypeVar("_Accepted")


def store_pairs(
    reading: Reading,
    chat: Chat,
    config: DataConfig,
    folder: Path,
    key: str,
    accept: Callable[[BadLines, Counter[str]], _Accepted],
) -> _Accepted:
    """Encodes and stores what is read, a few pairs at a time.

    Args:
      reading: What is read.
      chat: What encodes the pairs.
      config: How long they may be, and whether bad lines stop all.
      folder: Where pairs of each split are put, in folders of their names, and bad lines.
      key: What the pairs stand for.
      accept: Called with the bad lines, and with those of them by code that were met in the data,
        before anything is put in its place.

    Returns:
      The result of `accept`.

    Raises:
      UserError: If a source cannot be read, and whatever `accept` raises; nothing is stored then.
    """
    with contextlib.ExitStack() as stack:
        bad_lines = BadLines(stack.enter_context(replacing(folder / REJECTS)))
        writers: dict[Split, _Writer] = {
            split: _Writer(stack.enter_context(PairWriter(folder / split, key)), chat, config)
            for split in SPLITS
        }
        # Bad lines are written even where they stop the run, so that all can be looked at at once.
        rejected = _encode(reading, chat, writers, bad_lines, stops=config.on_error == "stop")
        accepted = accept(bad_lines, rejected)
        for writer in writers.values():
            writer.finish()
    return accepted


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
