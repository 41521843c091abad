"""`python -m jaxdpo.evaluate base=… sft=… dpo=… data=… criteria=… out=…`: models compared."""

import sys

from jaxdpo.cli.callable_module import make_callable
from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="evaluate",
    summary="compare models on the same prompts, by criteria and a judge",
    synopsis=(
        "[CONFIG.yaml] NAME=MODEL … data=… criteria=… out=FOLDER [field=value …]",
        "alignment=JUDGED.jsonl criteria=… [out=FOLDER]",
    ),
    about="""
Lets models answer the same prompts in the same way, judges the answers, and compares the models.
The same command again continues one that was cut off. NAME is yours to choose (base, sft, dpo);
MODEL is a folder, an adapter folder, org/name, a run folder, one of a run's checkpoints, or
http://host:port/v1#name; @answers is the data's own answers. The second form says how far criteria
agree with people's judgements.
""",
)


def main(arguments: list[str]) -> str | None:
    """Evaluates as the arguments say, and returns the next command; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.ending import command_line
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.generation.generators import DATA_ANSWERS
        from jaxdpo.generation.server import is_server
        from jaxdpo.rounds.compare import EvaluateConfig
        from jaxdpo.rounds.evaluate import AgreementConfig, evaluate, show_agreement, with_models
    given = COMMAND.read(arguments, EvaluateConfig, AgreementConfig)
    if any(override.startswith("alignment=") for override in given.overrides):
        show_agreement(load_settings(AgreementConfig, given.file, given.overrides))
        return None
    config = load_settings(EvaluateConfig, given.file, with_models(given.overrides))
    evaluate(config)
    here = [each for each in config.models.values() if each != DATA_ANSWERS and not is_server(each)]
    # The last one, as models are named in the order in which they came to be.
    return command_line("serve", model=here[-1]) if here else None


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))
