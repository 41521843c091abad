"""Pairs as a model will see them: lengths, what is cut, how they pack, and their tokens."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxdpo.cli.progress import spoken
from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.packing.plan import BatchConfig, Packer, choose_row_length, make_train_plan
from jaxdpo.data.pairs import PreferencePair, TokenizedPair, scored_tokens
from jaxdpo.data.reading.reports import tally
from jaxdpo.data.tokenization.chat import Chat, EncodedPair
from jaxdpo.data.tokenization.truncation import truncate
from jaxdpo.data.warnings import warn_of_drops, warn_of_steps
from jaxdpo.inspection.findings import Finding
from jaxdpo.inspection.places import NO_PLACES, PlacesWriter

# Operations a second that an H100 reaches in bf16 with half of its peak: a time that one can
# compare says more than a number of operations.
_FLOPS = 5e14
# Pairs that the tokenizer, which uses all cores, is given at a time.
_BATCH = 1024


@dataclass(frozen=True)
class Seen:
    """One pair as the model sees it.

    Attributes:
      source: Where it stands.
      outcome: What was done to make it fit.
      cut: Prompt tokens that it lost.
      spans: (kind, text) of each token; kinds: prompt, cut, scored, unscored, end, between.
    """

    source: str
    outcome: str
    cut: int
    spans: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Tokenized:
    """Pairs as tokens.

    Attributes:
      lengths: i32 `[N, 3]` of the pairs that can be used, TRAIN first; `[N, 2]` where they have one
        answer each.
      forecast: Lines on packing and cost.
      findings: What tokenising brought up.
      shown: The pairs to look at.
    """

    lengths: np.ndarray
    forecast: tuple[str, ...]
    findings: tuple[Finding, ...]
    shown: tuple[Seen, ...]


class TokenCounter:
    """Takes pairs one by one, encodes and fits them, and keeps their lengths and outcomes.

    Args:
      chat: What encodes them.
      max_length: Most tokens of a prompt and one completion.
      show: Pairs to look at: how many, or those that stand on these lines.
    """

    def __init__(self, chat: Chat, max_length: int, show: int | tuple[int, ...]) -> None:
        self._chat, self._max_length, self._show = chat, max_length, show
        self._waiting: list[PreferencePair] = []
        self._places = PlacesWriter()
        self._outcomes: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        self._refused: Counter[str] = Counter()
        # Three numbers a pair, by split.
        self._lengths = {"TRAIN": array("i"), "TEST": array("i")}
        self._shown: list[Seen] = []
        self._count = self._prompt_tokens = self._kept_tokens = 0
        self._labelled = True

    def add(self, pair: PreferencePair) -> None:
        """Takes the next pair."""
        self._waiting.append(pair)
        if len(self._waiting) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        encoded = self._chat.encode_pairs(self._waiting) if self._waiting else []
        for pair, each in zip(self._waiting, encoded, strict=True):
            self._places.add(pair.source)
            self._labelled = self._labelled and pair.label is not None
            if isinstance(each, BadPair):
                self._refused[each.code] += 1
                self._outcomes["refused"].append(self._count)
            else:
                self._fit(pair, each)
            self._count += 1
        self._waiting = []

    def _fit(self, pair: PreferencePair, encoded: EncodedPair) -> None:
        truncated = truncate(pair, encoded.tokens, self._chat, self._max_length)
        self._outcomes[truncated.outcome].append(self._count)
        if encoded.spelled_control:
            self._outcomes["control"].append(self._count)
        if truncated.tokens is not None:
            self._prompt_tokens += len(encoded.tokens.prompt_ids)
            self._kept_tokens += len(truncated.tokens.prompt_ids)
            self._lengths[pair.split].extend(len(ids) for ids in truncated.tokens[:3])
        show = self._show
        if len(self._shown) < show if isinstance(show, int) else _line(pair) in show:
            seen = _seen(pair, encoded.tokens, truncated.tokens, truncated.outcome, self._chat)
            self._shown.append(seen)

    def finish(self, batch: BatchConfig) -> Tokenized:
        """Returns what was seen, and plans an epoch of the TRAIN pairs.

        Args:
          batch: How the epoch is planned.
        """
        self._flush()
        # TRAIN first, as the plan counts its pairs.
        train, test = (
            np.array(self._lengths[split], np.int32).reshape(-1, 3) for split in ("TRAIN", "TEST")
        )
        both = np.concatenate([train, test])
        if len(both) and not both[:, 2].any():
            both = both[:, :2]
            if self._labelled and len(train):
                # In training each stands beside an answer to another prompt.
                train = np.concatenate([train[:, :2], np.roll(train[:, 1:2], 1, axis=0)], axis=1)
        forecast, findings = _forecast(train, batch) if len(train) else (_NOTHING, ())
        if lost := self._prompt_tokens - self._kept_tokens:
            total, limit = self._prompt_tokens, self._max_length
            forecast = (
                f"{lost:,} of {total:,} prompt tokens are cut to fit {limit}", *forecast
            )  # fmt: skip
        return Tokenized(both, forecast, (*self._findings(), *findings), tuple(self._shown))

    def _findings(self) -> list[Finding]:
        limit, places = self._max_length, self._places.finish()
        dropped = f"pairs are dropped: completions leave {limit} no room"
        codes = f" ({tally(self._refused)})" if self._refused else ""
        kinds = [
            (
                "refused", "refused", f"pairs cannot be rendered or encoded{codes}",
                "fix or drop them",
            ),
            (
                "cut", "cut_by_message", f"prompts lose their oldest turns to fit {limit} tokens",
                "raise data.max_length if memory allows",
            ),
            (
                "cut-within", "cut_by_token", f"prompts are cut within a message to fit {limit}",
                "raise data.max_length if memory allows",
            ),
            ("dropped", "dropped", dropped, "raise data.max_length, or shorten the answers"),
            (
                "control-text", "control", "pairs spell control tokens in their text",
                "they are kept as plain text; look whether they were meant to be",
            ),
        ]  # fmt: skip
        found = [
            Finding(code, title, len(indices), places.take(indices), remedy)
            for code, key, title, remedy in kinds
            if len(indices := np.array(self._outcomes[key], np.int64))
        ]
        kept = sum(map(len, self._lengths.values())) // 3
        count = len(self._outcomes["dropped"])
        return found + _whole("half-dropped", warn_of_drops(count, kept, limit), count)


def tokenize(
    pairs: Sequence[PreferencePair],
    chat: Chat,
    max_length: int,
    batch: BatchConfig,
    show: int | tuple[int, ...],
) -> Tokenized:
    """Encodes and fits all pairs, and plans an epoch of the TRAIN ones.

    Args:
      pairs: The pairs.
      chat: What encodes them.
      max_length: Most tokens of a prompt and one completion.
      batch: How an epoch is planned.
      show: Pairs to look at: how many, or those that stand on these lines.
    """
    counter = TokenCounter(chat, max_length, show)
    for pair in pairs:
        counter.add(pair)
    return counter.finish(batch)


_NOTHING = ("no TRAIN pair can be used",)


def _whole(code: str, warning: str | None, count: int) -> list[Finding]:
    """Returns a warning, if there is one, as a finding about the data as a whole."""
    if warning is None:
        return []
    title, _, remedy = warning.rpartition("; ")
    return [Finding(code, f"pairs: {title}", count, NO_PLACES, remedy)]


def _forecast(lengths: np.ndarray, batch: BatchConfig) -> tuple[tuple[str, ...], Sequence[Finding]]:
    """Returns lines on the packing and cost of an epoch, and what is wrong with it."""
    if batch.size > len(lengths):
        return (f"batch.size {batch.size} is more than the {len(lengths)} TRAIN pairs",), ()
    # The plan of one epoch on one device, from the same functions that a run uses: what is said
    # here is what will be done.
    row_length = choose_row_length(lengths, batch, batch.rows_per_device)
    packer = Packer(lengths, batch, batch.rows_per_device, row_length)
    plan = make_train_plan(packer, seed=0, epochs=1.0, max_steps=None)
    microbatches = sum(len(plan.microbatches(step)) for step in range(plan.num_steps))
    pairs = np.concatenate([plan.pairs(step) for step in range(plan.num_steps)])
    padded = microbatches * batch.rows_per_device * row_length
    tokens = int(lengths[pairs].sum(dtype=np.int64))
    # A prompt is laid out twice only where two completions follow it.
    again = np.where(lengths[pairs, 2] > 0, lengths[pairs, 0], 0)
    unpacked = tokens + int(again.sum(dtype=np.int64))
    # Forward and backward cost 6 operations for each parameter and token (Kaplan et al., 2020,
    # arXiv 2001.08361, section 2.1); the reference's forward pass alone costs 2.
    lines = (
        f"an epoch is {plan.num_steps} steps of {batch.size} pairs, in {microbatches} "
        f"microbatches of {batch.rows_per_device} × {row_length} tokens",
        f"{tokens / padded:.0%} of {padded:,} computed tokens are data; prompts shared by both "
        f"completions save {1 - tokens / unpacked:.0%}",
        f"an epoch costs about {6e9 * padded / 1e12:.3g} teraFLOP for each billion parameters of "
        f"the model ({spoken(6e9 * padded / _FLOPS)} at {_FLOPS / 1e12:.0f} teraFLOP a second), "
        "and a third as much for the reference",
    )
    few = warn_of_steps(plan.num_steps, len(lengths), batch.size, "an epoch")
    return lines, _whole("few-steps", few, len(lengths))


def _seen(
    pair: PreferencePair,
    whole: TokenizedPair,
    fitted: TokenizedPair | None,
    outcome: str,
    chat: Chat,
) -> Seen:
    tokens = whole if fitted is None else fitted
    cut = len(whole.prompt_ids) - len(tokens.prompt_ids)
    spans = [
        (kind, text)
        for kind, ids in _prompt_parts(whole.prompt_ids, tokens.prompt_ids)
        for text in _texts(ids, chat)
    ]
    chosen = "chosen" if pair.label is None else f"label {pair.label}".lower()
    for name, ids, unscored in (
        (chosen, tokens.chosen_ids, tokens.chosen_unscored),
        ("rejected", tokens.rejected_ids, tokens.rejected_unscored),
    ):
        if not len(ids):
            continue
        scored = set(scored_tokens(len(ids), unscored).tolist())
        spans.append(("between", name))
        for i, (id, text) in enumerate(zip(ids, _texts(ids, chat), strict=True)):
            kind = "end" if id in chat.end_ids else "scored"
            spans.append((kind if i in scored else "unscored", text))
    return Seen(pair.source, outcome, cut, tuple(spans))


def _prompt_parts(whole: np.ndarray, kept: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Returns the prompt with what was cut from it, if the rest is unchanged on either side."""
    # The first token that differs begins what was cut, and the ends are compared from behind.
    same = whole[: len(kept)] == kept[: len(whole)]
    start = len(kept) if same.all() else int(same.argmin())
    end = len(whole) - (len(kept) - start)
    if not np.array_equal(whole[end:], kept[start:]):
        return [("prompt", kept)]
    return [("prompt", whole[:start]), ("cut", whole[start:end]), ("prompt", whole[end:])]


def _line(pair: PreferencePair) -> int | None:
    line = pair.source.rpartition(":")[2]
    return int(line) if line.isdecimal() else None


def _texts(ids: np.ndarray, chat: Chat) -> list[str]:
    """Returns what each token adds to the text; a character of several tokens adds to its last."""
    tokenizer = chat.tokenizer
    texts, start = [], 0
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(ids[start:end].tolist()))
        # Byte-level tokens may end within a character: wait for the token that completes it, but
        # no longer than a character of UTF-8 has bytes.
        if text.endswith("\ufffd") and end - start < 4 and end < len(ids):
            texts.append("")
            continue
        texts.append(text)
        start = end
    return texts


def length_lines(lengths: np.ndarray) -> list[tuple[str, ...]]:
    """Returns the rows of a table: part, median, 95th percentile and longest, in tokens."""
    if not len(lengths):
        return []
    return [
        (name, *(f"{value:.0f}" for value in np.percentile(column, [50, 95, 100])))
        for name, column in zip(part_names(lengths), lengths.T, strict=True)
    ]


def part_names(lengths: np.ndarray) -> tuple[str, ...]:
    """Returns the names of the columns of lengths."""
    return ("prompt", "answer") if lengths.shape[1] == 2 else ("prompt", "chosen", "rejected")
