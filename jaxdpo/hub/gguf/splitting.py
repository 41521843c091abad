"""Splitting of text before BPE merges it: llama.cpp's names ↔ what tokenizer.json says.

A GGUF file names the rule and leaves the regular expressions to the program that reads it.
"""

from typing import Any

# Those of Llama 3's and Qwen2's published tokenizers, which differ in the digits of a piece alone.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(own_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        # Shifts offsets only, never ids.
        "trim_offsets": True,
        "use_regex": own_regex,
    }


def _split(digits: str) -> dict[str, Any]:
    pattern = {"Regex": _WORDS.replace("{DIGITS}", digits)}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


# A step that splits by a regular expression of its own leaves bytes alone to ByteLevel, which would
# split again otherwise. Each rule as the steps of tokenizer.json's pre_tokenizer.
STEPS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_byte_level(True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _byte_level(True)],
    "llama-bpe": [_split("{1,3}"), _byte_level(False)],
    "qwen2": [_split(""), _byte_level(False)],
}
# Other names of the same rules, which llama.cpp's converter has written.
_SAME = {"gpt2": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}


def steps_of(name: str) -> list[dict[str, Any]] | None:
    """Returns the steps of a rule that a GGUF file names, or None if it is not known here."""
    return STEPS.get(_SAME.get(name, name))


def rule_of(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """Returns the name of the rule that a tokenizer splits by, or None if it is not known here.

    Args:
      pre_tokenizer: The section of tokenizer.json.
    """
    # The same steps may be nested, and offsets may be trimmed or not: neither changes an id.
    steps = _flat(pre_tokenizer or {})
    found = [{**step, "trim_offsets": True} if "trim_offsets" in step else step for step in steps]
    return next((name for name, wanted in STEPS.items() if found == wanted), None)


def _flat(section: dict[str, Any]) -> list[dict[str, Any]]:
    if section.get("type") != "Sequence":
        return [section]
    return [step for part in section["pretokenizers"] for step in _flat(part)]
