"""Made-up names, and how lists of words are put into sentences."""

import random
import zlib
from collections.abc import Sequence
from typing import Literal

Split = Literal["TRAIN", "TEST"]

# A name's word is a start and an end: Balex, Dorik, Tazum.
STARTS = tuple(consonant + vowel for consonant in "BDGKMT" for vowel in "ao")
ENDS = tuple(consonant + rhyme for consonant in "lrv" for rhyme in ("ex", "ik", "um", "os"))
SYLLABLES = (*STARTS, *(f" {start}" for start in STARTS), *ENDS)


def draw_name(split: Split, rng: random.Random) -> str:
    """Two words drawn at random; a fifth of all names is TEST's alone, though not their words."""
    while True:
        name = " ".join(rng.choice(STARTS) + rng.choice(ENDS) for _ in range(2))
        if split_of(name) == split:
            return name


def split_of(name: str) -> Split:
    return "TEST" if zlib.crc32(name.encode()) % 5 == 0 else "TRAIN"


def listing(items: Sequence[str]) -> str:
    """`"a"`, `"a and b"`, `"a, b and c"`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
