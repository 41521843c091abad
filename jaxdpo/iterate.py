"""`python -m jaxdpo.iterate model=… data=… criteria=… folder=…`: rounds of alignment."""

import sys

from jaxdpo.cli.callable_module import make_callable
from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="iterate",
    summary="sample, judge, pair and train, in rounds, each with the model of the last",
    synopsis=("[CONFIG.yaml] model=… data=PROMPTS criteria=… folder=… [field=value …]",),
    about="""
In each round a model answers prompts, criteria judge the answers, the best and the worst make
pairs, and the model is trained on them. feedback=FOLDER adds the pairs of a studio's folder to each
round. The same command again continues.
Fields of train.… are those of python -m jaxdpo.train.
""",
)


def main(arguments: list[str]) -> str | None:
    """Runs the rounds as the arguments say, and returns the next command; `--help` shows fields."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.ending import command_line
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.rounds.iterate import RoundsConfig, iterate
    given = COMMAND.read(arguments, RoundsConfig)
    config = load_settings(RoundsConfig, given.file, given.overrides)
    trained = len(iterate(config)) - 1
    if not trained:
        return None
    compared = {"before": config.model, "after": f"{config.folder}/round_{trained}/run"}
    out = f"{config.folder}/evaluation"
    return command_line(
        "evaluate", **compared, data="PROMPTS.jsonl", criteria="CRITERIA.yaml", out=out
    )


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))
