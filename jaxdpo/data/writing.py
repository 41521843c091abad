"""Pairs → JSON Lines that any run reads again."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxdpo.data.pairs import PreferencePair
from jaxdpo.storage.files import replacing


def write_pairs(pairs: Iterable[PreferencePair], path: Path, single: bool | None = None) -> None:
    """Writes pairs, all in one form: `messages` and `rejected_message` where that can hold them.

    A file with an answer of several messages has prompt, chosen and rejected instead, and pairs
    that came as ids stay ids. Answers judged one by one have a label in place of a second one, and
    supervised examples have `messages` alone.

    Args:
      pairs: The pairs; those of a file that is too large for the memory as they are read.
      path: The file.
      single: Whether every answer is one message; by default it is looked up, with all pairs held.
    """
    if single is None:
        pairs = tuple(pairs)
        # One form for the whole file: a reader recognises it from any line.
        single = all(len(pair.chosen) == len(pair.rejected) == 1 for pair in pairs)
    with replacing(path) as file:
        for pair in pairs:
            file.write(json.dumps(pair_record(pair, single), ensure_ascii=False) + "\n")


def pair_record(pair: PreferencePair, single: bool) -> dict[str, Any]:
    """Returns a pair as a line of such a file; `single` if every answer of it is one message."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    record: dict[str, Any]
    if pair.token_ids is not None:
        record = dict(zip(names, pair.token_ids, strict=True))
    elif pair.label is not None:
        record = {"prompt": pair.prompt, "completion": pair.chosen, "label": pair.label}
    elif not pair.rejected:
        record = {"messages": pair.prompt + pair.chosen}
    elif single:
        record = {"messages": pair.prompt + pair.chosen, "rejected_message": pair.rejected[0]}
    else:
        record = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    record["split"] = pair.split
    # Fields that say nothing are left out, so that what is written is what was read.
    optional = {
        "tools": pair.tools,
        "metadata": pair.metadata,
        "chat_template_kwargs": pair.template_kwargs,
    }
    record |= {key: value for key, value in optional.items() if value}
    if pair.scores is not None:
        record["chosen_score"], record["rejected_score"] = pair.scores
    return record
