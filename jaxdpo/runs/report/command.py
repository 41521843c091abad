"""The command `jaxdpo report`: pages of runs that were made before."""

import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from jaxdpo.cli.console import Reporter
from jaxdpo.runs.report.comparison import write_comparison
from jaxdpo.runs.report.run_page import write_report


class ReportConfig(BaseModel):
    """The runs, and the page that compares them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folders: tuple[str, ...] = Field(min_length=1, description="run folders")
    out: str = Field(default="comparison.html", description="page that compares several runs")


def report(config: ReportConfig) -> Path:
    """Writes the page of one run, or the page that compares several; returns where it is.

    Args:
      config: The run folders, and the page.

    Raises:
      UserError: If a folder holds no run, or a file of it cannot be read.
    """
    folders = [Path(folder) for folder in config.folders]
    if len(folders) == 1:
        page = write_report(folders[0])
        if "out" in config.model_fields_set:
            # A pattern may match one run: its page has to be where it was asked for.
            page = Path(shutil.copyfile(page, config.out))
    else:
        page = Path(config.out)
        write_comparison(folders, page)
    Reporter().say(f"report: {page}")
    return page
