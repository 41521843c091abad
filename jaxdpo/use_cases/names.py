"""Made-up names."""

import random

from jaxdpo.quickstart.task import Split, split_of

# A name's word is a start and an end: Balex, Dorik, Tazum.
STARTS = tuple(consonant + vowel for consonant in "BDGKMT" for vowel in "ao")
ENDS = tuple(consonant + rhyme for consonant in "lrv" for rhyme in ("ex", "ik", "um", "os"))
SYLLABLES = (*STARTS, *(f" {start}" for start in STARTS), *ENDS)


def draw_name(split: Split, rng: random.Random) -> str:
    """Draws two words at random; a fifth of all names is TEST's alone, though not their words."""
    # Drawn until the hash of one says its split: the splits need no list, and share no name.
    while True:
        name = " ".join(rng.choice(STARTS) + rng.choice(ENDS) for _ in range(2))
        if split_of(name) == split:
            return name
