"""Control tokens that text cannot forge.

A tokenizer matches its added tokens (`<|im_end|>`, `<think>`, …) in any text, so a message that
spells one ends its own turn. Here only the chat template writes them:

1. Text is given walls before it is rendered: a character inside each control token that it spells,
   and at its edges where it could be part of one. So what matches in the rendering was written by
   the template, every character of it.
2. Those matches are spelled anew, in characters that no text may hold, for a copy of the tokenizer
   that knows the control tokens by that spelling alone. Walls are taken out. Added tokens split
   the text as they always do, and everything else about the tokenizer stays as it is, so the
   ids of honest text are the tokenizer's own.
3. A vocabulary may hold a control token as an ordinary piece (Unigram does). If one comes out of
   the text between, that text is split inside it and encoded again.

Walls and spellings are Unicode noncharacters (U+FDD0 to U+FDEF), which are set aside for a
program's own use and never mean anything in text; text that holds one is refused.

Added is not control: most tokens that people add are vocabulary (`COVID-19`, `<b>`, digits), and
mean the same in a message as anywhere. Control tokens are those that the tokenizer declares special
and those in brackets that the chat template writes (`<think>`, `<tool_call>`).
"""

import itertools
import json
import re
from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
from tokenizers import AddedToken, Tokenizer

from jaxdpo.data.bad_pair import BadPair, show

WALL = "\ufdd0"
# How a spelling starts: of a token that parts the text, whatever precedes it, and of one that may
# take white space before it along.
_PARTS, _JOINS = "\ufdd1", "\ufdd2"
_DIGITS = [chr(0xFDE0 + digit) for digit in range(16)]
_NONCHARACTER = re.compile("[\ufdd0-\ufdef]")
# `<x>`, `[x]`, `|||x|||`: what marks parts of a conversation. A word, a digit or "```" that a
# template happens to write is vocabulary all the same.
_IN_BRACKETS = re.compile(r"<.+>|[^\w\s].*\w.*[^\w\s]", re.DOTALL)
# Characters of parts that are encoded one after another, without the tokenizer's threads.
_SHORT_PARTS = 2000
_ENDS_IN_WORD, _BEGINS_WITH_WORD = re.compile(r"\w$"), re.compile(r"^\w")


class ControlTokens:
    """The control tokens of one tokenizer, and its encoding with those only where they are meant.

    All other added tokens are text and stay as they are.

    Attributes:
      texts: The control tokens.
      pattern: Matches any of them, the longest first.
      unknown_id: The id of what the vocabulary cannot write, or None.
    """

    def __init__(self, backend: Tokenizer, written: str | None = None, ends: Collection[str] = ()):
        """Tells the control tokens of a tokenizer from its vocabulary.

        Args:
          backend: The tokenizer.
          written: All that the chat template writes itself. Without one, any added token could be
            written by it.
          ends: Tokens that end an answer, whatever they look like.
        """
        added = backend.get_added_tokens_decoder()
        if written is not None and backend.normalizer is not None:
            # A token may be matched after lower-casing, and written in capitals.
            written += "\0" + backend.normalizer.normalize_str(written)
        controls = [
            token
            for token in added.values()
            if token.content in ends or _is_control(token, written, backend)
        ]
        texts = [token.content for token in controls]
        self.texts = frozenset(texts)
        self._whole_words = {token.content for token in controls if token.single_word}
        self.pattern = re.compile(_any_of(texts))
        self._start = re.compile(f"(?={_any_of(texts)})(.)", re.DOTALL)
        # Parts of tokens: text could be one half of a token, and the template write the other.
        self._prefixes = {text[:i] for text in texts for i in range(1, len(text))}
        self._suffixes = {text[i:] for text in texts for i in range(1, len(text))}
        self._all_texts = WALL.join(texts)
        self._longest = max(map(len, texts), default=0)
        self._spelling = {token.content: _spell(i, token) for i, token in enumerate(controls)}
        self._firsts = sorted({text[0] for text in texts})
        self._lasts = sorted({text[-1] for text in texts})

        # A copy that knows the control tokens by their spellings alone; what a tokenizer adds by
        # itself (BOS, padding) is the template's affair.
        definition = json.loads(backend.to_str())
        definition |= {"added_tokens": [], "post_processor": None}
        definition |= {"truncation": None, "padding": None}
        self._encoder = Tokenizer.from_str(json.dumps(definition))
        pieces = [self._encoder.token_to_id(text) for text in texts]
        self._encoder.add_tokens(
            [_respelled(token, self._content(token)) for token in added.values()]
        )
        self._encoder.add_tokens([AddedToken(WALL, normalized=False)])
        self._wall_id = self._encoder.token_to_id(WALL)

        # From ids of the copy to the tokenizer's own: they differ for added tokens only.
        size = 1 + max(*self._encoder.get_vocab().values(), *added)
        self._own_id = np.arange(size, dtype=np.int32)
        for id, token in added.items():
            self._own_id[self._encoder.token_to_id(self._content(token))] = id
        # Control tokens that the vocabulary holds as ordinary pieces. Not the unknown token: what
        # the vocabulary cannot write is that one by design, however it is spelled.
        self._rows = size
        self._forged = np.zeros(size, bool)
        self._forged[[id for id in pieces if id is not None]] = True
        self.unknown_id = _unknown_id(definition["model"])
        if self.unknown_id is not None:
            self._forged[self.unknown_id] = False

    def forbid_from(self, rows: int) -> None:
        """Refuses text that yields ids from `rows` on, which a model's embedding does not have."""
        self._rows = rows

    def forbid_unknown(self) -> None:
        """Refuses text that yields the unknown token: where that one has a meaning as well."""
        self._forged[self.unknown_id] = True

    def _content(self, token: AddedToken) -> str:
        return self._spelling.get(token.content, token.content)

    def wall(self, text: str) -> str:
        """Returns the text such that no control token matches in it, or across its edges.

        Args:
          text: Text by anyone. Most comes back as it is.

        Raises:
          BadPair: If the text holds a noncharacter, or a control token of one character.
        """
        if self.harmless(text):
            return text
        if found := _NONCHARACTER.search(text):
            raise BadPair(
                "noncharacter",
                f"{show(text)} holds U+{ord(found[0]):04X}, which is no character; remove it",
            )
        core = text.strip()
        if not (self.pattern.search(text) or self._joins(core)):
            return text
        # Templates trim content; the walls go inside the white space at its ends.
        start = text.find(core)
        before, after = text[:start], text[start + len(core) :]
        walled = before + WALL + self._start.sub(rf"\1{WALL}", core) + WALL + after
        if found := self.pattern.search(walled):
            raise BadPair(
                "control-text",
                f"{show(text)} holds {show(found[0])}, a control token of one character that "
                "cannot be written as text with this tokenizer; remove it",
            )
        return walled

    def harmless(self, text: str) -> bool:
        """Tells at once, where that is plain, that no control token has to do with the text.

        It holds no character that one begins with, and what could be the end of one, at its start,
        holds none that one ends in; and no noncharacter. Most text is like that.
        """
        if not text.isascii() and _NONCHARACTER.search(text):
            return False
        for first in self._firsts:
            if first in text:
                return False
        start = text.strip()[: self._longest]
        for last in self._lasts:
            if last in start:
                return False
        return len(start) == self._longest

    def _joins(self, core: str) -> bool:
        """Tells whether text could be the start, end or middle of a control token."""
        reach = range(1, min(self._longest, len(core) + 1))
        return any(core[-i:] in self._prefixes or core[:i] in self._suffixes for i in reach) or (
            core != "" and core in self._all_texts
        )

    def spell(self, rendered: str) -> str:
        """Spells the control tokens of a rendering for `encode`, and takes its walls out."""
        spelled = self.pattern.sub(self._spelled, rendered)
        return spelled.replace(WALL, "") if WALL in spelled else spelled

    def _spelled(self, match: re.Match[str]) -> str:
        if match[0] in self._whole_words:
            # The tokenizer passes such a token over where it is part of a longer word.
            before, after = match.string[: match.start()], match.string[match.end() :]
            if _ENDS_IN_WORD.search(before.rstrip(WALL)) or _BEGINS_WITH_WORD.search(
                after.lstrip(WALL)
            ):
                return match[0]
        return self._spelling[match[0]]

    def encode(self, texts: Sequence[str]) -> list[np.ndarray | BadPair]:
        """Encodes spelled texts to the tokenizer's own ids, each i32, or says why not.

        What stands between control tokens is encoded apart, and once: the renderings of a pair
        share most of it.
        """
        # The renderings of a pair are alike for the most part: each distinct part is encoded once.
        parted = [_parts(text) for text in texts]
        parts = list(dict.fromkeys(itertools.chain.from_iterable(parted)))
        # The tokenizer's threads pay for many parts; one conversation would wait longer for them
        # than it takes to encode.
        if sum(map(len, parts)) < _SHORT_PARTS:
            encodings = [self._encoder.encode(part, add_special_tokens=False) for part in parts]
        else:
            encodings = self._encoder.encode_batch_fast(parts, add_special_tokens=False)
        each = [encoding.ids for encoding in encodings]
        ids = np.fromiter(itertools.chain.from_iterable(each), np.int32)
        ends = list(itertools.accumulate(map(len, each)))
        own = self._own_id[ids]
        encoded: dict[str, np.ndarray | BadPair] = {
            part: own[end - len(part_ids) : end]
            for part, part_ids, end in zip(parts, each, ends, strict=True)
        }
        for at in np.unique(np.searchsorted(ends, np.flatnonzero(self._forged[ids]), "right")):
            encoded[parts[at]] = self._apart(parts[at])
        return [self._embedded(_joined([encoded[part] for part in parts])) for parts in parted]

    def _embedded(self, ids: np.ndarray | BadPair) -> np.ndarray | BadPair:
        """Returns the ids, or why a model's embedding has no row for one of them."""
        if isinstance(ids, BadPair) or not len(ids) or ids.max() < self._rows:
            return ids
        token = self._encoder.id_to_token(int(ids.max()))
        return BadPair(
            "not-embedded",
            f"{show(str(token))} has the id {ids.max()}, but the model's embedding has only "
            f"{self._rows} rows; remove the token, or use the tokenizer that belongs to the model",
        )

    def _apart(self, text: str) -> np.ndarray | BadPair:
        """Encodes text that the vocabulary makes a control token of, split inside it."""
        while True:
            encoding = self._encoder.encode(text, add_special_tokens=False)
            ids = np.array(encoding.ids, np.int32)
            forged = np.flatnonzero(self._forged[ids])
            if not len(forged):
                return self._own_id[ids[ids != self._wall_id]]
            # From the last to the first, so that earlier offsets stay true.
            for start, end in sorted({encoding.offsets[i] for i in forged}, reverse=True):
                if end - start < 2:
                    return BadPair(
                        "control-text",
                        f"{show(text[start:end])} is a control token of this tokenizer, however it "
                        "is written; remove it",
                    )
                text = text[: start + 1] + WALL + text[start + 1 :]


def without_spellings(spelled: str) -> str:
    """Removes the control tokens from a spelled text."""
    return _NONCHARACTER.sub("", spelled)


def _is_control(token: AddedToken, written: str | None, backend: Tokenizer) -> bool:
    # "▁" is how SentencePiece writes a space; Gemma has added tokens of white space alone.
    if token.special or token.content.replace("▁", " ").isspace():
        return token.special
    if written is None:
        return True
    texts = [token.content]
    if token.normalized and backend.normalizer is not None:
        texts.append(backend.normalizer.normalize_str(token.content))
    return any(text in written for text in texts) and bool(_IN_BRACKETS.fullmatch(token.content))


def _parts(spelled: str) -> list[str]:
    """Splits a spelled text before each control token that parts it."""
    first, *rest = spelled.split(_PARTS)
    return [first, *(_PARTS + part for part in rest)] if first else [_PARTS + p for p in rest]


def _joined(parts: Sequence[np.ndarray | BadPair]) -> np.ndarray | BadPair:
    for part in parts:
        if isinstance(part, BadPair):
            return part
    return np.concatenate(cast(list[np.ndarray], parts)) if parts else np.zeros(0, np.int32)


def _spell(index: int, token: AddedToken) -> str:
    digits = "".join(_DIGITS[int(digit, 16)] for digit in f"{index:04x}")
    # Normalisation may put the prefix space of SentencePiece before a token.
    return (_JOINS if token.lstrip or token.normalized else _PARTS) + digits


def _respelled(token: AddedToken, content: str) -> AddedToken:
    return AddedToken(
        content,
        # `spell` has looked at the words beside a control token.
        single_word=token.single_word and content == token.content,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
    )


def _unknown_id(model: dict[str, Any]) -> int | None:
    if model["type"] == "Unigram":
        return model["unk_id"]
    unknown = model.get("unk_token")
    return model["vocab"].get(unknown) if unknown else None


def _any_of(texts: Sequence[str]) -> str:
    """Builds a regular expression for any of the texts, the longest first, as a trie.

    Tokenizers have thousands of added tokens; a plain alternation would try each of them.
    """
    if not texts:
        return "(?!)"
    branches: dict[str, list[str]] = {}
    for text in texts:
        if text:
            branches.setdefault(text[0], []).append(text[1:])
    tails = [re.escape(first) + _any_of(rest) for first, rest in branches.items()]
    if not tails:
        return ""
    either = f"(?:{'|'.join(tails)})" if len(tails) > 1 or "" in texts else tails[0]
    return either + "?" if "" in texts else either
