"""Names the language of a text."""

import functools
import unicodedata
from collections import Counter
from typing import Any

# A prompt's first words tell its language; the rest only costs time.
_LOOKED_AT = 300
# Below this probability the guess is left out, and only the script is named.
_SURE = 0.5
# The languages that are told apart: those of ISO 639-1 that the classifier knows. Its many small
# ones, which it takes for typing mistakes in a large one, are left out.
# fmt: off
_NAMES = {
    "af": "Afrikaans", "am": "Amharic", "ar": "Arabic", "as": "Assamese", "az": "Azerbaijani",
    "be": "Belarusian", "bg": "Bulgarian", "bn": "Bengali", "br": "Breton", "bs": "Bosnian",
    "ca": "Catalan", "cs": "Czech", "cy": "Welsh", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "eo": "Esperanto", "es": "Spanish", "et": "Estonian", "eu": "Basque",
    "fa": "Persian", "fi": "Finnish", "fr": "French", "ga": "Irish", "gl": "Galician",
    "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "ht": "Haitian Creole",
    "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic", "it": "Italian",
    "ja": "Japanese", "jv": "Javanese", "ka": "Georgian", "kk": "Kazakh", "km": "Khmer",
    "kn": "Kannada", "ko": "Korean", "ku": "Kurdish", "ky": "Kyrgyz", "la": "Latin", "lo": "Lao",
    "lt": "Lithuanian", "lv": "Latvian", "mg": "Malagasy", "mk": "Macedonian", "ml": "Malayalam",
    "mn": "Mongolian", "mr": "Marathi", "ms": "Malay", "mt": "Maltese", "ne": "Nepali",
    "nl": "Dutch", "no": "Norwegian", "oc": "Occitan", "or": "Odia", "pa": "Punjabi",
    "pl": "Polish", "ps": "Pashto", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian", "sq": "Albanian", "sr": "Serbian",
    "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai",
    "tl": "Tagalog", "tr": "Turkish", "ug": "Uyghur", "uk": "Ukrainian", "ur": "Urdu",
    "uz": "Uzbek", "vi": "Vietnamese", "xh": "Xhosa", "zh": "Chinese", "zu": "Zulu",
}
# fmt: on


@functools.cache
def _classifier() -> Any:
    # Loading it takes a second and 100 MiB, which only those who ask for a language pay.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    classifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    classifier.set_languages(sorted(_NAMES))
    return classifier


def language(text: str) -> str:
    """Returns the language of a text, or its script where that is all that can be told.

    A text without letters has "no words".

    >>> language("Wie weit ist es von hier bis zu den Bergen?")
    'German'
    """
    start = text[:_LOOKED_AT]
    if not any(map(str.isalpha, start)):
        return "no words"
    code, probability = _classifier().classify(start)
    return _NAMES[code] if probability >= _SURE else _script(start)


def _script(text: str) -> str:
    """Returns the script of most of a text's letters, by their names in Unicode."""
    letters = (unicodedata.name(letter, "unknown") for letter in text if letter.isalpha())
    [(name, _)] = Counter(letter.split(" ")[0] for letter in letters).most_common(1)
    return f"{name.capitalize()} script"
