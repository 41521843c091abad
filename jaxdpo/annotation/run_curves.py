"""Curves of the runs that the studio's models came from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from jaxdpo.errors import UserError
from jaxdpo.runs.report.comparison import draw_compared
from jaxdpo.runs.report.curves import draw_curves
from jaxdpo.runs.report.files import RunFiles, is_run, read_run
from jaxdpo.runs.report.sentences import verdict

# A picture carries its width for notebooks; the studio's policy allows no style but its own sheet.
_STYLE = re.compile(r' style="[^"]*"')


@dataclass(frozen=True)
class RunCurves:
    """The run of one model.

    Attributes:
      name: The model's name in the studio.
      folder: The run folder.
      verdict: The report's sentence of what became of it; why it cannot be read, if it cannot.
      curves: Its pictures.
    """

    name: str
    folder: str
    verdict: str
    curves: list[Markup]


def run_folder(place: str) -> Path | None:
    """Returns the run that a model came from: its folder, its export or a checkpoint of it."""
    # A name of the Hub or an address is no path of this machine, and none of its parents is a run.
    path = Path(place).expanduser()
    return next((each for each in (path, *path.parents[:2]) if is_run(each)), None)


def curves_of(models: Mapping[str, str]) -> tuple[list[Markup], list[RunCurves]]:
    """Returns pictures of all runs together, where there are several, and each run's own.

    The files are read anew each time: a run may be under way.

    Args:
      models: Name ↦ place.
    """
    shown, read = [], {}
    for name, place in models.items():
        folder = run_folder(place)
        if folder is None:
            continue
        try:
            read[name] = run = read_run(folder)
            shown.append(RunCurves(name, str(folder), verdict(run), _plain(draw_curves(run))))
        except UserError as error:
            # One run that cannot be read hides neither the page nor the others.
            shown.append(RunCurves(name, str(folder), str(error), []))
    return _together(read), shown


def _together(runs: Mapping[str, RunFiles]) -> list[Markup]:
    # Two checkpoints of one run have the same curves.
    if len({run.path for run in runs.values()}) < 2:
        return []
    return _plain(draw_compared(list(runs.values()), list(runs)))


def _plain(pictures: Sequence[Markup]) -> list[Markup]:
    return [Markup(_STYLE.sub("", str(each), count=1)) for each in pictures]
