"""`python -m jaxdpo.score model=… reference=… data=… out=…`: log-probs and implicit rewards."""

import sys

from jaxdpo.cli.callable_module import make_callable
from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="score",
    summary="score pairs or answers: log-probs, implicit rewards, margins and ranks",
    synopsis=("[CONFIG.yaml] model=… [reference=…] data=DATA out=SCORES.jsonl [field=value …]",),
    about="""
Scores the answers of preference data, of a benchmark of reward models (prompt, chosen, rejected,
subset), or of a file that `python -m jaxdpo.sample` wrote, and shows a table by group. With a
reference, rewards are DPO's implicit ones. best=FILE writes each prompt's best answer;
data.select.at_least=…, at_most, share and keep, with write=FILE, select pairs to train on.
""",
)


def main(arguments: list[str]) -> str | None:
    """Scores as the arguments say, and returns the next command; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.ending import command_line
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.runs.score_config import ScoreConfig
        from jaxdpo.runs.score_pairs import score
    given = COMMAND.read(arguments, ScoreConfig)
    config = load_settings(ScoreConfig, given.file, given.overrides)
    score(config)
    if config.write is None:
        return None
    fields = {"model": config.model, "data": config.write}
    return command_line("train", **fields, training__folder="runs/selected")


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))
