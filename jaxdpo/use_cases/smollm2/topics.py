"""Things that prompts are about, those of each split apart."""

import random
from collections.abc import Iterator

from jaxdpo.use_cases.smollm2.task import Split


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TOPICS: dict[Split, tuple[str, ...]] = {
    "TRAIN": _words(
        """anchor apple apron axe bag balloon banana basket bed bell bench blanket boat book boot
        bottle box bridge broom brush bucket button cake camera candle candy carpet castle chair
        cheese church clock cloud coat coin computer cup desk doctor door dress drum farm fence
        fish flag flower flute forest fork garden gate glass glove goat guitar hammer hat horse
        hospital hotel kettle key kitchen knife ladder lamp lemon letter lion map market mirror
        moon mountain mouse museum nail needle"""
    ),
    "VALIDATION": _words(
        """oven paddle painting parrot pencil piano pillow pilot planet plate pond potato prison
        puzzle rabbit radio river rocket roof rose"""
    ),
    "TEST": _words(
        """sailor sandwich saddle school shark sheep shirt shovel singer snake soap spider
        spoon statue stove suitcase sword table tailor teacher telescope temple tent theater tiger
        tower tractor train tree trumpet tunnel turtle umbrella vase village violin wagon whale
        window"""
    ),
}


def shuffled_topics(split: Split, rng: random.Random) -> Iterator[str]:
    """Yields topics of a split without end, every one once before any comes twice.

    Args:
      split: The split.
      rng: Makes the draws.
    """
    while True:
        yield from rng.sample(TOPICS[split], len(TOPICS[split]))


_VOWELS = "aeiou"


def with_article(noun: str) -> str:
    """Returns a noun with its indefinite article.

    >>> with_article("apple"), with_article("book")
    ('an apple', 'a book')
    """
    return f"an {noun}" if noun[0] in _VOWELS else f"a {noun}"
