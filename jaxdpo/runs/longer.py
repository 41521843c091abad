"""A run that is continued for more epochs or steps than it was begun with."""

from dataclasses import replace

import numpy as np

from jaxdpo.cli.console import Reporter
from jaxdpo.data.packing.plan import make_train_plan
from jaxdpo.errors import UserError
from jaxdpo.runs.folder import RunFolder
from jaxdpo.runs.setup import Setup


def continue_longer(setup: Setup, folder: RunFolder, reporter: Reporter) -> None:
    """Makes a run that was to be shorter go on, if its folder holds such a run.

    A step's pairs follow from the seed and its number alone, so the steps that were taken are the
    first ones of the longer run. Its learning rate is another matter: a schedule that falls to 0 is
    stretched over all steps, and the steps to come are taken at the rate that it has there, which
    the steps before were not.

    Args:
      setup: The run as it is to be from now on.
      folder: Its folder; its summary goes, because it is of the shorter run.
      reporter: Says how the learning rate goes on.

    Raises:
      UserError: If the run is to be shorter than it was.
    """
    if folder.earlier is None:
        return
    config, plan, length = setup.config, setup.plan, folder.earlier
    # From the same pairs and seed, as that run planned itself.
    before = make_train_plan(plan.packer, plan.seed, length.epochs, length.max_steps).num_steps
    if plan.num_steps < before:
        raise UserError(
            f"{folder.path}: holds a run of {before} steps (training.epochs={length.epochs:g}, "
            f"training.max_steps={length.max_steps or 'null'}), and is asked for "
            f"{plan.num_steps}; a run can be made longer, not shorter: put them back, set "
            "training.folder to a new folder, or training.overwrite=true to begin anew"
        )
    # Only now, when the longer run is known to be possible: until here the folder is a finished
    # run's, and stays one if anything is refused.
    folder.reopen(config)
    if plan.num_steps == before:
        return
    earlier = replace(setup.optimizer, num_steps=before).schedule()
    # The next step has the number `before`, counted from 0.
    rates = [
        np.asarray(schedule(before)).item() for schedule in (earlier, setup.optimizer.schedule())
    ]
    reporter.say(
        f"a run of {before} steps goes on to {plan.num_steps}: from step {before + 1} the learning "
        f"rate is that of the {config.optimizer.schedule} schedule over all {plan.num_steps} "
        f"steps, {rates[1]:.3g} there (over {before} steps it ended at {rates[0]:.3g})"
    )
