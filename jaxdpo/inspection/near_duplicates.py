"""Finds texts that nearly repeat an earlier one, in 512 bytes a text and without comparing all.

Two texts are alike when the Jaccard similarity of their sets of three-word runs is high. MinHash
(Broder, "On the resemblance and containment of documents", 1997) estimates it from a fixed number
of minima: under a random permutation of all runs, two sets have the same first run with probability
equal to their similarity. Banding (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
section 3.4) finds the candidates: only texts that agree on a whole band of minima are compared.
"""

import hashlib
from array import array
from collections.abc import Sequence

import numpy as np
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

# The share of equal minima from which on two texts count as near-duplicates.
THRESHOLD = 0.8
# The standard error of an estimated similarity s is sqrt(s (1 - s) / PERMUTATIONS): 2.5 points at
# the threshold. A similarity of 0.7 is taken for one of 0.8 once in 3,000 comparisons.
PERMUTATIONS = 256
# A similarity s becomes a candidate with probability 1 - (1 - s^ROWS)^BANDS: 0.997 at the
# threshold, 0.99999998 at 0.9, 0.12 at 0.5.
BANDS, ROWS = 32, 8

# Texts whose minima are computed in one call, and texts whose minima lie in one array.
_FLUSH, _CHUNK = 512, 65_536
# Candidate pairs that are compared at a time.
_COMPARED = 65_536
_KNOWN_WORDS = 500_000
# Odd constants for multiplicative hashing: the golden ratio in 64 bits, and two primes.
_MIX = tuple(np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))


class _WordHashes(dict[str, int]):
    """64-bit hashes of words, each computed once.

    Python's own `hash` of a string differs from process to process, and so would the findings.
    """

    def __missing__(self, word: str) -> int:
        # Rare words never end: forget them all before they fill the memory.
        if len(self) >= _KNOWN_WORDS:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = self[word] = int.from_bytes(digest, "little")
        return value


class NearDuplicates:
    """Takes texts as they come, and tells which of them nearly repeat an earlier one."""

    def __init__(self) -> None:
        self._hash_of = _WordHashes()
        # Hashes of the words of the texts since the last flush, one text after the other.
        self._words = array("Q")
        # The parts' lengths, and how many parts each text has.
        self._part_sizes: list[int] = []
        self._parts: list[int] = []
        self._chunks: list[np.ndarray] = []
        self._wordless: list[int] = []
        self._count = 0

    def add(self, parts: Sequence[Sequence[str]]) -> None:
        """Takes the next text.

        Args:
          parts: Its words, part by part: no run of words crosses from one part to the next.
        """
        before = len(self._part_sizes)
        for words in parts:
            if words:
                self._words.extend(map(self._hash_of.__getitem__, words))
                # A part of one or two words is one run: zeros stand for the words it lacks.
                missing = max(3 - len(words), 0)
                self._words.extend([0] * missing)
                self._part_sizes.append(len(words) + missing)
        self._parts.append(len(self._part_sizes) - before)
        if len(self._parts) == _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._parts:
            return
        runs, counts = self._runs()
        self._wordless += (self._count + np.flatnonzero(counts == 0)).tolist()
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        # For a text of 450 words rensa takes 18 µs, numpy 100 and datasketch 230.
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(runs, offsets, PERMUTATIONS, 1)
        # Sixteen bits of a minimum tell two of them apart but for one time in 65,536, which is far
        # below the standard error, and halve the memory.
        minima = np.array(matrix.to_rows(), np.uint32).astype(np.uint16)
        for row in minima:
            if self._count % _CHUNK == 0:
                self._chunks.append(np.empty((_CHUNK, PERMUTATIONS), np.uint16))
            self._chunks[-1][self._count % _CHUNK] = row
            self._count += 1
        self._words = array("Q")
        self._part_sizes, self._parts = [], []

    def _runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the hashes of all three-word runs, u64, and how many of them each text has."""
        words = np.frombuffer(self._words, np.uint64) if self._words else np.zeros(0, np.uint64)
        sizes = np.array(self._part_sizes, np.int64)
        # Multiplying by another constant at each place makes the order of the words count.
        first, second, third = (words * factor for factor in _MIX)
        runs = first + np.roll(second, -1) + np.roll(third, -2)
        # Sums of products are regular in their low bits: fold the high ones in, twice.
        runs = (runs ^ (runs >> np.uint64(32))) * _MIX[0]
        runs ^= runs >> np.uint64(29)
        # Runs that begin at the last two words of a part reach into the next part.
        inside = np.ones(len(words), bool)
        ends = np.cumsum(sizes)
        inside[ends - 1] = inside[ends - 2] = False
        text_of_part = np.repeat(np.arange(len(self._parts)), self._parts)
        counts = np.bincount(text_of_part, sizes - 2, minlength=len(self._parts))
        return runs[inside], counts.astype(np.int64)

    def find(self, same: np.ndarray) -> np.ndarray:
        """Returns the indices of texts that nearly repeat an earlier one, increasing, i64.

        Args:
          same: u64 `[N]`, one number a text: those with equal numbers are exact repeats, which are
            found elsewhere, and are not compared. A text without words has no near-duplicate.

        Returns:
          Each text of which an earlier one, among those compared, is estimated to be at least
          `THRESHOLD` similar.
        """
        self._flush()
        found = np.zeros(self._count, bool)
        # All texts without words have the same minima, and nothing in common.
        comparable = np.ones(self._count, bool)
        comparable[self._wordless] = False
        for band in range(BANDS):
            later, earlier = _bucket_neighbours(self._band(band))
            open_ = comparable[later] & ~found[later] & (same[later] != same[earlier])
            # Once a text is found, further bands have nothing to add.
            later, earlier = later[open_], earlier[open_]
            for start in range(0, len(later), _COMPARED):
                some = slice(start, start + _COMPARED)
                one, two = self._minima(later[some]), self._minima(earlier[some])
                alike = (one == two).mean(1) >= THRESHOLD
                found[later[some][alike]] = True
        return np.flatnonzero(found)

    def _band(self, band: int) -> np.ndarray:
        """Returns one number a text, u64 `[N]`: equal where all minima of a band are equal."""
        # Eight minima of 16 bits are two words of 64.
        keys = [
            chunk.view(np.uint64)[:, 2 * band] * _MIX[0]
            ^ chunk.view(np.uint64)[:, 2 * band + 1] * _MIX[1]
            for chunk in self._chunks
        ]
        return np.concatenate(keys)[: self._count] if keys else np.zeros(0, np.uint64)

    def _minima(self, indices: np.ndarray) -> np.ndarray:
        """Gathers the minima of some texts, u16 `[n, PERMUTATIONS]`."""
        out = np.empty((len(indices), PERMUTATIONS), np.uint16)
        chunk_of = indices // _CHUNK
        for chunk in np.unique(chunk_of):
            here = chunk_of == chunk
            out[here] = self._chunks[chunk][indices[here] % _CHUNK]
        return out


def _bucket_neighbours(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairs (later, earlier) of indices with equal keys, i64 each.

    Each text meets the first of its bucket and the one before it, so that a bucket of n texts costs
    2 n comparisons. All n (n - 1) / 2 would be too many where a file repeats one text.
    """
    # A stable sort keeps equal keys in the order of the texts.
    order = np.argsort(keys, kind="stable")
    begins = np.ones(len(keys), bool)
    begins[1:] = keys[order[1:]] != keys[order[:-1]]
    start = np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))
    later = np.flatnonzero(~begins)
    first, previous = start[later], later - 1
    further = first < previous
    places = np.concatenate([later, later[further]]), np.concatenate([previous, first[further]])
    return order[places[0]], order[places[1]]
