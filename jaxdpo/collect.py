"""`python -m jaxdpo.collect SOURCE in.jsonl -o pairs.jsonl`: preference pairs from feedback."""

import sys
from pathlib import Path

from jaxdpo.cli.command import run_command
from jaxdpo.cli.settings import fields_text, load_settings
from jaxdpo.data.writing import write_pairs
from jaxdpo.errors import UserError, nearest
from jaxdpo.feedback.collecting import FEEDBACK, Feedback, collect
from jaxdpo.feedback.preferences import FeedbackConfig

USAGE = """usage: python -m jaxdpo.collect SOURCE IN.jsonl -o PAIRS.jsonl [field=value …]

Makes preference pairs of what people did or criteria said, and counts what makes none. SOURCE:

  expert_edits   messages, output, edited
  user_edits     messages, draft, saved
  user_choice    messages, outputs, selected (a place in outputs), shown (places; default: all)
  regenerations  messages, attempts, accepted (a place in attempts, or null)
  criteria       messages, completion, criterion, passed or score, explanation: a line a judgement
  events         a chat application's log; jaxdpo/feedback/events.py describes it

messages is the prompt. Any line may have tools, split, metadata, annotator and time.
"""


def main(arguments: list[str]) -> None:
    """Collects as the arguments say."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE + "\n" + fields_text(FeedbackConfig))
        return
    source, path, target, overrides = _parse(arguments)
    config = load_settings(FeedbackConfig, None, overrides)
    collected = collect(source, path, config)
    print(collected.summary())
    if not collected.pairs:
        raise UserError(f"{path}: no line makes a pair; {target} is not written")
    try:
        write_pairs(collected.pairs, target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    print(f"written: {target}")


def _parse(arguments: list[str]) -> tuple[Feedback, str, Path, list[str]]:
    usual = "write python -m jaxdpo.collect SOURCE IN.jsonl -o PAIRS.jsonl"
    if arguments.count("-o") != 1 or arguments[-1] == "-o":
        raise UserError(f"-o must be given once, with the file to write; {usual}")
    at = arguments.index("-o")
    target = Path(arguments[at + 1]).expanduser()
    rest = arguments[:at] + arguments[at + 2 :]
    named = [argument for argument in rest if "=" not in argument]
    if len(named) != 2:
        raise UserError(f"{' '.join(named) or 'nothing'} is given for SOURCE and IN.jsonl; {usual}")
    for source in FEEDBACK:
        if source == named[0]:
            return source, named[1], target, [argument for argument in rest if "=" in argument]
    raise UserError(
        f"{named[0]}: no source of feedback{nearest(named[0], FEEDBACK)}; there are "
        f"{', '.join(FEEDBACK)}"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
