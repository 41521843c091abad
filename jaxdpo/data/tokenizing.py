"""Preference pairs → token ids that fit, kept on disk; and the whole way from a file to them."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxdpo.data.cache import (
    FORMAT_VERSION,
    ROWS_PER_CHUNK,
    UNKNOWN,
    PairWriter,
    TokenizedPairs,
    open_pairs,
)
from jaxdpo.data.chat import Chat
from jaxdpo.data.config import DataConfig
from jaxdpo.data.fitting import fit
from jaxdpo.data.pairs import PreferencePair, Split
from jaxdpo.data.reader import handle_bad_lines, read_pairs
from jaxdpo.data.records import BadLine, BadPair, bad_line
from jaxdpo.data.reports import ReadReport, TokenizeReport
from jaxdpo.data.sources import find_sources, raw_records
from jaxdpo.errors import UserError


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
    read = read_pairs(config.path, config, rejects_path, supervised)
    splits: dict[Split, TokenizedPairs] = {}
    for split in read.report.pairs:
        of_split = [pair for pair in read.pairs if pair.split == split]
        splits[split] = _tokenize(of_split, chat, config)
    refused = [bad for pairs in splits.values() for bad in pairs.report.rejected]
    if refused:
        both = [*read.bad_lines, *_with_raw(refused)]
        both.sort(key=lambda bad: (bad.file, bad.line))
        handle_bad_lines(both, config, rejects_path)
    if not len(splits["TRAIN"]):
        raise UserError(
            f"{config.name()}: none of its {read.report.pairs['TRAIN']} TRAIN pairs can be used:\n"
            + splits["TRAIN"].report.summary(config.max_length)
        )
    return LoadedPairs(splits, read.report)


def tokenize_pairs(
    pairs: Sequence[PreferencePair], chat: Chat, config: DataConfig
) -> TokenizedPairs:
    """Tokenises pairs, or opens what an earlier call with the same pairs and tokenizer stored.

    A pair longer than `max_length` (prompt and its longer completion) loses prompt from the left:
    its oldest turns, keeping the system message and the last user turn, and if that is not enough,
    tokens. A completion is never cut; a pair whose completions leave a prompt less than 16 tokens
    is dropped. The report counts each.

    Args:
      pairs: Preference pairs; those of one split.
      chat: The model's tokenizer and template.
      config: `max_length`, `cache_dir` and `on_error` are used.

    Raises:
      UserError: With `on_error="stop"`, for pairs that cannot be rendered or encoded.
    """
    tokenized = _tokenize(pairs, chat, config)
    handle_bad_lines(tokenized.report.rejected, config, None)
    return tokenized


def _tokenize(pairs: Sequence[PreferencePair], chat: Chat, config: DataConfig) -> TokenizedPairs:
    key = cache_key(pairs, chat, config)
    folder = config.cache_folder() / "pairs" / key
    stored = open_pairs(folder, key)
    if stored is None:
        try:
            _write(pairs, chat, config, folder, key)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); set data.cache_dir to a folder "
                "with room"
            ) from error
        stored = open_pairs(folder, key)
        assert stored is not None, f"{folder} was just written"
    return stored


def cache_key(pairs: Sequence[PreferencePair], chat: Chat, config: DataConfig) -> str:
    """SHA-256 of everything that the stored tokens depend on."""
    state = hashlib.sha256()
    state.update(f"{FORMAT_VERSION} {chat.fingerprint} {config.max_length}\n".encode())
    for pair in pairs:
        said = [pair.prompt, pair.chosen, pair.rejected, pair.tools, pair.source]
        said += [pair.metadata, pair.template_kwargs, pair.token_ids, pair.scores, pair.label]
        state.update(json.dumps(said, ensure_ascii=False).encode() + b"\n")
    return state.hexdigest()


def _write(
    pairs: Sequence[PreferencePair], chat: Chat, config: DataConfig, folder: Path, key: str
) -> None:
    outcomes: defaultdict[str, list[str]] = defaultdict(list)
    rejected: list[BadLine] = []
    count = 0
    with PairWriter(folder, key) as writer:
        for start in range(0, len(pairs), ROWS_PER_CHUNK):
            batch = pairs[start : start + ROWS_PER_CHUNK]
            for pair, encoded in zip(batch, chat.encode_pairs(batch), strict=True):
                if isinstance(encoded, BadPair):
                    rejected.append(_bad_line(pair, encoded))
                    continue
                fitted = fit(pair, encoded.tokens, chat, config.max_length)
                outcomes[fitted.outcome].append(pair.source)
                if encoded.spelled_control:
                    outcomes["spelled_control"].append(pair.source)
                if fitted.tokens is not None:
                    scores = pair.scores or UNKNOWN
                    writer.add(fitted.tokens, pair.source, pair.metadata, scores, pair.label)
                    count += 1
        outcomes.pop("whole", None)
        seen = {outcome: tuple(sources) for outcome, sources in outcomes.items()}
        writer.finish(TokenizeReport(pairs=count, rejected=tuple(rejected), **seen))


def _bad_line(pair: PreferencePair, bad: BadPair) -> BadLine:
    file, _, line = pair.source.rpartition(":")
    # Pairs that were made in Python may come from no line.
    known = file and line.isdecimal()
    return BadLine(file if known else pair.source, int(line) if known else 0, bad.code, bad.reason)


def _with_raw(refused: Sequence[BadLine]) -> list[BadLine]:
    """The refused lines with their text, as the reader's own have it."""
    lines: defaultdict[str, set[int]] = defaultdict(set)
    for bad in refused:
        lines[bad.file].add(bad.line)
    raw = {
        (file, line): text
        for file, numbers in lines.items()
        for source in find_sources(file)
        for line, text in raw_records(source, numbers).items()
    }
    return [
        bad_line(bad.file, bad.line, BadPair(bad.code, bad.reason), raw[bad.file, bad.line])
        for bad in refused
    ]
