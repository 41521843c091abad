"""`python -m jaxdpo.use_cases.smollm2 TASK [field=value …]`."""

import sys

from jaxdpo.cli.command import Command, run_command
from jaxdpo.printable import show

COMMAND = Command(
    name="use_cases.smollm2",
    summary="DPO beside supervised training on a language model that somebody else trained",
    synopsis=("TASK [field=value …]",),
    about="""
Lets SmolLM2-135M-Instruct answer, makes pairs of its answers by a criterion, trains on them by
supervised training, by DPO and by both, and measures all on topics that no pair is about.
TASK is all, word_limit, dictionary, from_text, or report, which only writes the page again.
The same command again continues, and writes results.md from every result.json below the folder.
""",
    positionals=("task",),
)


def main(arguments: list[str]) -> None:
    """Runs tasks as the arguments say."""
    with COMMAND.loading(arguments):
        from pathlib import Path

        from jaxdpo.cli.settings import load_settings
        from jaxdpo.use_cases.smollm2.config import Smollm2Config
        from jaxdpo.use_cases.smollm2.pipeline import Seed, run_seed, tune
        from jaxdpo.use_cases.smollm2.report import write_report
        from jaxdpo.use_cases.smollm2.tasks import TASKS
    given = COMMAND.read(arguments, Smollm2Config)
    config = load_settings(Smollm2Config, given.file, given.overrides)
    names = [name for name in TASKS if config.task in (name, "all")]
    for name in names:
        for number in config.seeds:
            seed = Seed(TASKS[name], config, number)
            if not config.rates:
                run_seed(seed)
                continue
            for contestant, rate, passed, answers in tune(seed):
                show(f"{name}, seed {number}: {contestant}, {rate:g}: {passed} of {answers} pass")
    if not config.rates:
        page = None if config.page is None else Path(config.page)
        show(write_report(Path(config.folder), page))


if __name__ == "__main__":
    sys.exit(run_command(main))
