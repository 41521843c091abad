"""`python -m jaxdpo.collect SOURCE in.jsonl -o pairs.jsonl`: preference pairs from feedback."""

import sys

from jaxdpo.cli.callable_module import make_callable
from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="collect",
    summary="make preference pairs of what people did, or of judgements",
    synopsis=(
        "SOURCE FILE… -o PAIRS.jsonl [field=value …]",
        "sources='{SOURCE: FILES, …}' -o PAIRS.jsonl",
    ),
    about="""
Makes preference pairs of what people did or criteria said, and counts what makes none. SOURCE:

  expert_edits   messages, output, edited
  user_edits     messages, draft, saved
  user_choice    messages, outputs, selected (a place in outputs), shown (places; default: all)
  regenerations  messages, attempts, accepted (a place in attempts, or null)
  thumbs         messages, output, label (true or false): labelled answers, no pairs
  criteria       messages, completion, criterion, passed or score, explanation: a line a judgement
  events         a chat application's log (jaxdpo/feedback/events.py), or a studio's folder

argilla, label_studio, open_webui, chainlit, gradio and langfuse are exports of these tools;
docs/gathering_feedback.md says which files.

messages is the prompt, or prompt as text. Any line may have tools, split, metadata, annotator and
time; other keys are kept as metadata.
""",
    positionals=("source", "data…"),
)


def main(arguments: list[str]) -> str | None:
    """Collects as the arguments say, and returns the next command; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.ending import command_line
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.feedback.to_file import CollectConfig, collect_to_file
    given = COMMAND.read(arguments, CollectConfig)
    config = load_settings(CollectConfig, given.file, given.overrides)
    collect_to_file(config)
    if config.out is None:
        judged = {"alignment": config.alignment, "criteria": "CRITERIA.yaml"}
        return command_line("evaluate", **judged)
    return command_line("inspect", config.out)


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))
