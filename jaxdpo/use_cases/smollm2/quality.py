"""Faults that make an answer worthless although it does what a task asks for.

A model that is rewarded for short answers learns "A tax is a tax." unless something forbids it:
each of these is a check of every task's criterion.
"""

import itertools
import re
from collections.abc import Iterable


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STOP_WORDS = _words(
    """a about after all also an and any are as at be been before being but by can could do does
    each for from had has have he her his how i if in into is it its just like may more most not of
    often on one only or other our over she so some such than that the their them then there these
    they this those to too two up us used very was we were what when where which who whose why will
    with would you your"""
)
# Words that could stand in an answer about anything.
_EMPTY = _words(
    """amazing beautiful called creature example form great important item kind known magical object
    part piece place something sort special stuff thing things type typically unique usually way
    word words"""
)
# How the model begins where it does something else than what it is asked for.
_EVASIONS = re.compile(
    r"\b(as an ai|i'm|i am|i can't|i cannot|i don't|sorry|please provide|let me|sure,|certainly|"
    r"of course|here is|here are|here's)",
    re.IGNORECASE,
)
# An answer with fewer content words beside its topic says nothing of it.
_FEWEST_CONTENT_WORDS = 2


def words_of(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def content_words(text: str, topic: Iterable[str] = ()) -> set[str]:
    """Returns the words of a text that say something: no stop words, no empty ones, no topic.

    >>> sorted(content_words("A tax is a kind of taxes that people pay.", ["tax"]))
    ['pay', 'people']

    Args:
      text: The text.
      topic: Words of the topic; words that begin with one of them are its forms.
    """
    # "taxes" says no more about a tax than "tax" does.
    stems = tuple(word.lower() for word in topic)
    return {
        word
        for word in words_of(text)
        if len(word) > 2
        and word not in _STOP_WORDS | _EMPTY
        and not (stems and word.startswith(stems))
    }


def is_tautology(text: str, topic: Iterable[str]) -> bool:
    """Tells whether a text says nothing about its topic, such as "A tax is a tax."."""
    return len(content_words(text, topic)) < _FEWEST_CONTENT_WORDS


def repeats_itself(text: str) -> bool:
    """Tells whether three words in a row stand twice in a text, or a word twice in a row."""
    words = words_of(text)
    # Single words come twice in good sentences, and pairs of them ("of the") in longer ones.
    triples = list(zip(words, words[1:], words[2:], strict=False))
    twice = any(a == b for a, b in itertools.pairwise(words))
    return twice or len(set(triples)) < len(triples)


def evades(text: str) -> bool:
    """Tells whether a text talks about the speaker or announces an answer in place of giving it."""
    return _EVASIONS.search(text) is not None


def is_sentence(text: str) -> bool:
    """Tells whether a text is one line that begins with a capital and ends as a sentence does."""
    # An answer that was cut off at the most tokens, and a list, are none.
    text = text.strip()
    return bool(re.fullmatch(r"[A-Z\"'].*[.!?][\"']?", text)) and "\n" not in text
