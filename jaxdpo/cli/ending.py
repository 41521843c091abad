"""The last lines of a command: how long it took, and the command that one types next."""

import shlex

from jaxdpo.cli.progress import BAR_AFTER, spoken


def command_line(command: str, *words: str, **fields: object) -> str:
    """Writes a command as a shell reads it.

    >>> command_line("train", model="my models/sft", data="pairs.jsonl")
    "jaxdpo train model='my models/sft' data=pairs.jsonl"

    Args:
      command: The word after `jaxdpo`.
      words: Words that follow it as they are, such as a file.
      fields: Its fields; two underscores stand for the dot between a section and a field.
    """
    given = [f"{name.replace('__', '.')}={shlex.quote(str(v))}" for name, v in fields.items()]
    return " ".join(["jaxdpo", command, *map(shlex.quote, words), *given])


def ending(seconds: float, following: str | None) -> str | None:
    """Returns what a command says at its end; None if there is nothing to say.

    Args:
      seconds: The time that it took; one of two seconds needs no mention.
      following: The command to type next, if there is one.
    """
    lines = [f"done in {spoken(seconds)}"] if seconds >= BAR_AFTER else []
    if following is not None:
        lines.append(f"next: {following}")
    return "\n".join(lines) or None
