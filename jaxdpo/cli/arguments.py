"""Reads the words of a command line: one spelling for all commands, whichever the user prefers.

`key=value`, `--key=value` and `--key value` mean the same; a field that is true or false may stand
as `--key` alone; `-o FILE` is `out=FILE`.
"""

import json
from collections.abc import Collection, Sequence
from typing import NamedTuple

from jaxdpo.errors import UserError

SHORT = {"-o": "out"}


class Arguments(NamedTuple):
    """A command line, its spellings made one.

    Attributes:
      file: The YAML file of a configuration, if one is given.
      overrides: Each `key=value`.
      tail: The words after the option that ends the fields (`--sweep`); None without it.
    """

    file: str | None
    overrides: list[str]
    tail: list[str] | None = None


def read_arguments(
    words: Sequence[str],
    positionals: Sequence[str] = (),
    flags: Collection[str] = (),
    tail: str | None = None,
) -> Arguments:
    """Reads a command line.

        read_arguments(["dpo.yaml", "--loss.beta", "0.2", "data=p.jsonl"])
        # Arguments("dpo.yaml", ["loss.beta=0.2", "data=p.jsonl"])

    Args:
      words: The words after the command's name.
      positionals: Keys of the words that may stand without one, in order; the last may end in
        "…", and takes all words that are left.
      flags: Keys that are true or false, and need no value.
      tail: The option that all words after belong to.

    Raises:
      UserError: For a misspelt option, an option without its value, or a word too many.
    """
    words, rest = list(words), None
    if tail is not None and tail in words:
        at = words.index(tail)
        words, rest = words[:at], _as_overrides(words[at + 1 :])
    # One pass, since a value may look like anything: only the word before it tells.
    overrides, bare = [], []
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            overrides.append(_option(word, words, flags))
        elif "=" in word:
            overrides.append(word)
        else:
            bare.append(word)
    # Where no word may stand alone but the configuration file, any name is one.
    files = [word for word in bare if word.endswith((".yaml", ".yml")) or not positionals]
    if len(files) > 1:
        raise UserError(f"one configuration file at a time, not {' and '.join(files)}")
    places = [word for word in bare if word not in files]
    if positionals and (last := positionals[-1]).endswith("…"):
        positionals = [*positionals[:-1], last.removesuffix("…")]
        several = places[len(positionals) - 1 :]
        if len(several) > 1:
            # A list in YAML's own form, whatever the names hold.
            places[len(positionals) - 1 :] = [json.dumps(several, ensure_ascii=False)]
    if len(places) > len(positionals):
        extra = places[len(positionals)]
        raise UserError(f"{extra!r}: a word too many; a field is set as key=value or --key value")
    named = [f"{key}={word}" for key, word in zip(positionals, places, strict=False)]
    return Arguments(files[0] if files else None, [*named, *overrides], rest)


def _as_overrides(words: list[str]) -> list[str]:
    """Returns `key=value` for every spelling among words that hold nothing else."""
    found = []
    while words:
        word = words.pop(0)
        found.append(_option(word, words, ()) if word.startswith("-") else word)
    return found


def _option(word: str, rest: list[str], flags: Collection[str]) -> str:
    """Returns an option as `key=value`, its value taken from the words after it if need be."""
    key, equals, _ = word.partition("=")
    if key in SHORT:
        word = f"--{SHORT[key]}{word.removeprefix(key)}"
    elif not word.startswith("--") or not key.strip("-") or key.startswith("---"):
        raise UserError(
            f"{word!r}: is no option; a field is set as key=value, --key=value or --key value"
        )
    word = word.removeprefix("--")
    if equals:
        return word
    if word in flags:
        given = rest.pop(0) if rest and rest[0] in ("true", "false") else "true"
        return f"{word}={given}"
    # A value may begin with one dash, as -1 does; with two it is the next option.
    if not rest or rest[0].startswith("--"):
        raise UserError(f"--{word}: its value is missing; write --{word} VALUE or {word}=VALUE")
    return f"{word}={rest.pop(0)}"
