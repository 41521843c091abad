"""Which language a text is in, by its letters and commonest words: enough for a count."""

import re
from collections import Counter

from jaxdpo.inspection.texts import words

# Letters that only one language, or several of one script, are written in.
_SCRIPTS = {
    "Japanese": "\u3041-\u30ff",
    "Korean": "\uac00-\ud7af",
    "Chinese": "\u4e00-\u9fff",
    "Cyrillic script": "\u0400-\u04ff",
    "Arabic script": "\u0600-\u06ff",
    "Hebrew": "\u0590-\u05ff",
    "Greek": "\u0370-\u03ff",
    "Devanagari script": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
    "Latin script": "A-Za-z\u00c0-\u024f",
}
_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_COMMON = {
    "English": "the of and to is that for with are you this what how it be on not",
    "German": "der die das und ist nicht ein eine mit von zu wie für auf den im ich sie",
    "French": "le la les des et est une un pour que dans qui vous pas du avec sur ce",
    "Spanish": "el los las y es una un para que en por con no se del como lo su",
    "Portuguese": "o os as e é uma um para que em por com não se do da como no",
    "Italian": "il gli e è una un per che in di con non si della del come lo sono",
    "Dutch": "de het een en is niet van voor met dat op zijn te hoe wat ik je in",
}
_OWN_WORDS = {name: frozenset(common.split()) for name, common in _COMMON.items()}
# Of a text in one of these languages, at least this share are its commonest words.
_SHARE = 0.08


def language(text: str) -> str:
    """The language of a text, or its script where several share it; "no words" if it has none.

    >>> language("Wie weit ist es von hier bis zu den Bergen?")
    'German'
    """
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    most = max(counts, key=lambda name: counts[name])
    if not counts[most]:
        return "no words"
    # Japanese is written in both.
    if most == "Chinese" and counts["Japanese"] * 10 > counts["Chinese"]:
        return "Japanese"
    if most != "Latin script":
        return most
    found = words(text)
    hits = Counter({name: sum(word in own for word in found) for name, own in _OWN_WORDS.items()})
    (best, count), (_, second) = hits.most_common(2)
    return best if count > second and count >= _SHARE * len(found) else most
