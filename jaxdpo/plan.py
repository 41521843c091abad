"""`python -m jaxdpo.plan CONFIG.yaml topology=v5e:4x4`: will a run fit a machine, and how fast?"""

import sys

from jaxdpo.cli.callable_module import make_callable
from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="plan",
    summary="say whether a run fits a machine, and how fast it will be",
    synopsis=("[CONFIG.yaml] [field=value …] [section.field=value …]",),
    about="""
Says whether a run fits a machine, and how fast it will be: the training step is compiled for it,
from any machine and without weights. For the machine at hand a few steps are timed as well.
Fields with a section are those of `python -m jaxdpo.train`.
""",
)


def main(arguments: list[str]) -> str | None:
    """Plans as the arguments say, and returns the next command; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.planning.plan_run import PlanConfig, load_plan, plan_run, planned_command
    given = COMMAND.read(arguments, PlanConfig)
    config = load_plan(given.file, given.overrides)
    plan = plan_run(config)
    if plan.verdict == "does not fit":
        return None
    return planned_command(config, given.file, given.overrides)


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))
