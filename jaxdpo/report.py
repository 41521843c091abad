"""`python -m jaxdpo.report RUN …`: the page of a run, or one page that compares several."""

import json
import sys
from pathlib import Path

from jaxdpo.cli.callable_module import make_callable
from jaxdpo.cli.command import Command, run_command

COMMAND = Command(
    name="report",
    summary="make the page of a run, or one page that compares several",
    synopsis=("RUN_FOLDER", "RUN_FOLDER RUN_FOLDER … [out=comparison.html]"),
    about="""
Makes report.html of a run folder from its files, whether the run is finished or under way; every
run makes its own at each evaluation. With several run folders, writes one page that compares them:
figures, curves, and the settings in which they differ.
""",
)


def main(arguments: list[str]) -> None:
    """Makes the pages that the arguments name; `--help` shows every field."""
    with COMMAND.loading(arguments):
        from jaxdpo.cli.settings import load_settings
        from jaxdpo.runs.report.command import ReportConfig, report
    folders = _folders(arguments)
    rest = [word for word in arguments if word not in folders]
    if folders:
        rest.append(f"folders={json.dumps(folders)}")
    given = COMMAND.read(rest, ReportConfig)
    report(load_settings(ReportConfig, given.file, given.overrides))


def _folders(words: list[str]) -> list[str]:
    """Returns the words that name run folders."""
    found, before = [], ""
    for word in words:
        # The name of a folder may hold "=", as those of a sweep's runs do.
        is_value = before.startswith("--") and "=" not in before
        is_name = not word.startswith("-") and "=" not in word and not word.endswith(".yaml")
        if not is_value and (is_name or Path(word).is_dir()):
            found.append(word)
        before = word
    return found


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))
