"""Writes a tokenizer so that transformers 4 and 5, and vLLM on either, load the same one."""

import json
from pathlib import Path
from typing import Any

_CONFIG = "tokenizer_config.json"
# Fields of one machine or one version. `auto_map` names code in the folder that the tokenizer came
# from, which is neither run nor copied here.
_LEFT_OUT = ("auto_map", "backend", "is_local", "local_files_only")


def write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Writes a tokenizer with its chat template.

    tokenizer.json holds the whole tokenizer. tokenizer_config.json names the class that wraps it,
    and transformers 5 writes class names and fields that 4 does not know.

    Args:
      folder: An existing folder.
      tokenizer: A fast tokenizer of transformers.
    """
    tokenizer.save_pretrained(folder)
    path = folder / _CONFIG
    written = json.loads(path.read_text(encoding="utf-8"))
    # The one class that both versions have and that takes tokenizer.json as it is. The classes of
    # the model families build parts of the tokenizer anew, and not alike in both versions.
    written["tokenizer_class"] = "PreTrainedTokenizerFast"
    # In version 5 a list under this name; 4 expects a dict there and has the list under another
    # name, which 5 still reads.
    if isinstance(written.get("extra_special_tokens"), list):
        written["additional_special_tokens"] = written.pop("extra_special_tokens")
    for field in _LEFT_OUT:
        written.pop(field, None)
    text = json.dumps(written, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
