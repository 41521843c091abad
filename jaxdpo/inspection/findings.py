"""What is wrong with pairs, each kind with its count, where it stands, and what to do."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.splits import leaked_prompts, pair_digest
from jaxdpo.inspection.shortcuts import Shortcut
from jaxdpo.inspection.texts import answers, said, words
from jaxdpo.storage.files import json_digest

_EXAMPLES = 5
_HASHES, _BANDS, _ALIKE = 64, 16, 0.8


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    Attributes:
      code: Its stable short name.
      title: What it is.
      count: How many pairs have it.
      where: `file:line` of the first few.
      remedy: What to do.
    """

    code: str
    title: str
    count: int
    where: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        where = f" ({', '.join(self.where)})" if self.where else ""
        return f"{self.count} {self.title}{where}: {self.remedy}"


def find(pairs: Sequence[PreferencePair], shortcuts: Sequence[Shortcut]) -> list[Finding]:
    """Everything that can be seen without a tokenizer; nothing in clean data."""
    duplicates, opposite = repeated(pairs)
    trivial = [almost_equal(*answers(pair)) for pair in pairs]
    found = [
        _finding(
            "duplicate", "pairs repeat an earlier one", [pairs[i].source for i in duplicates],
            "write=… with remedies=[dedupe] drops the repeats",
        ),
        _finding(
            "opposite", "pairs have the labels of another one, turned round",
            [pairs[i].source for i in opposite],
            "decide which is right; remedies=[conflicts] drops both",
        ),
        _finding(
            "near-duplicate", "pairs nearly repeat an earlier one",
            [pairs[i].source for i in near_duplicates(pairs)],
            "keep one of each, or their weight in training grows with their number",
        ),
        _finding(
            "leak", "TEST pairs have a prompt that stands in TRAIN too", leaked_prompts(pairs),
            "remedies=[leaks] moves them to TRAIN; TEST figures flatter until then",
        ),
        _finding(
            "almost-equal", "pairs differ by almost nothing",
            [pair.source for pair, same in zip(pairs, trivial, strict=True) if same],
            "check that the difference is what people preferred",
        ),
        _finding(
            "no-end", "pairs have a chosen answer that seems to break off",
            [pair.source for pair in pairs if breaks_off(answers(pair)[0])],
            "write the answers whole: the model learns to end where they do",
        ),
        _finding(
            "score", "pairs have a chosen answer that scores no higher than the rejected one",
            [p.source for p in pairs if p.scores is not None and p.scores[0] <= p.scores[1]],
            "swap or drop them",
        ),
    ]  # fmt: skip
    for rule in shortcuts:
        if rule.notable:
            found.append(
                Finding(
                    "shortcut",
                    f"pairs: {rule.name} alone tells chosen from rejected in {rule.accuracy:.0%} "
                    f"± {rule.interval:.0%}; {rule.detail}",
                    len(pairs),
                    (),
                    "remedies=[balance] evens lengths out"
                    if rule.name == "length"
                    else "vary what chosen and rejected answers have of it",
                )
            )
    return [finding for finding in found if finding.count]


def _finding(code: str, title: str, where: Sequence[str], remedy: str) -> Finding:
    return Finding(code, title, len(where), tuple(where[:_EXAMPLES]), remedy)


def repeated(pairs: Sequence[PreferencePair]) -> tuple[list[int], list[int]]:
    """Indices of exact repeats (all but the first), and of pairs with opposite labels (all)."""
    at: defaultdict[tuple[bytes, str, str], list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        told = (pair.chosen, pair.rejected) if pair.token_ids is None else pair.token_ids[1:]
        # The same answer with the other label is the pair turned round.
        told = told[::-1] if pair.label is False else told
        at[pair_digest(pair), json_digest(told[0]), json_digest(told[1])].append(index)
    again = [index for same in at.values() for index in same[1:]]
    opposite = [i for (p, c, r), same in at.items() if (p, r, c) in at for i in same]
    return sorted(again), sorted(opposite)


def near_duplicates(pairs: Sequence[PreferencePair]) -> list[int]:
    """Indices of pairs whose texts share most of their three-word runs with an earlier pair's.

    Candidates come from MinHash in bands; each is checked by the runs themselves.
    """
    generator = np.random.Generator(np.random.Philox(key=[0, 0]))
    factors = generator.integers(1, 2**61, (_HASHES, 1), dtype=np.uint64) | np.uint64(1)
    buckets: dict[tuple[int, bytes], int] = {}
    runs_of: list[frozenset[int]] = []
    found = []
    for index, pair in enumerate(pairs):
        runs = _runs([said(pair.prompt), *answers(pair)])
        runs_of.append(runs)
        if not runs:
            continue
        hashes = (np.array(sorted(runs), np.uint64) * factors) >> np.uint64(16)
        bands = hashes.min(axis=1).reshape(_BANDS, -1)
        keys = [(band, row.tobytes()) for band, row in enumerate(bands)]
        earlier = {buckets[key] for key in keys if key in buckets}
        alike = [len(runs & runs_of[j]) / len(runs | runs_of[j]) for j in earlier]
        # What is exactly equal is found as that.
        if any(_ALIKE <= share < 1 for share in alike):
            found.append(index)
        for key in keys:
            buckets.setdefault(key, index)
    return found


def _runs(texts: Sequence[str]) -> frozenset[int]:
    every = [words(text) for text in texts]
    runs = (" ".join(one[i : i + 3]) for one in every for i in range(max(len(one) - 2, 1)))
    return frozenset(
        int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "big") for run in runs
    )


def almost_equal(chosen: str, rejected: str) -> bool:
    """Whether two answers have the same words, or long ones all words but one."""
    one, two = words(chosen), words(rejected)
    if one == two:
        return bool(one)
    if abs(len(one) - len(two)) > 1 or len(one) < 20:
        return False
    start = _shared(one, two)
    end = min(_shared(one[::-1], two[::-1]), min(len(one), len(two)) - start)
    return max(len(one), len(two)) - start - end <= 1


def _shared(one: Sequence[str], two: Sequence[str]) -> int:
    different = (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    return next(different, min(len(one), len(two)))


def breaks_off(text: str) -> bool:
    """Whether a long answer ends in the middle of a sentence, by its last character."""
    lines = text.rstrip().splitlines()
    if len(words(text)) < 20 or not lines:
        return False
    last = lines[-1]
    # The last item of a list, a heading or a line of code ends in no full stop.
    listed = last.lstrip()[:1] in "-*#•|0123456789" or last[:1].isspace()
    return not listed and last[-1].isascii() and (last[-1].isalnum() or last[-1] == ",")


def turns(pairs: Iterable[PreferencePair]) -> dict[int, int]:
    """Pairs by the number of user messages in the prompt."""
    counts: defaultdict[int, int] = defaultdict(int)
    for pair in pairs:
        counts[sum(message["role"] == "user" for message in pair.prompt)] += 1
    return dict(sorted(counts.items()))
