"""Keeps the page of a run as its files are, while it runs and at its end."""

from jaxdpo.cli.console import Reporter
from jaxdpo.runs.folder import FACTS_FILE, RunFolder
from jaxdpo.runs.report.facts import Facts
from jaxdpo.runs.report.run_page import write_report
from jaxdpo.runs.report.test_pairs import keep_test_pairs
from jaxdpo.runs.setup import Setup
from jaxdpo.scoring.scores import CompletionScores


class LiveReport:
    """The page of a run under way; made at evaluations, since a page a step would cost too much.

    Args:
      setup: The run.
      folder: Its folder.
      reporter: Knows what was said, and says if the page cannot be made.
      first_step: Steps that were done before.
    """

    def __init__(self, setup: Setup, folder: RunFolder, reporter: Reporter, first_step: int):
        self._setup, self._folder, self._reporter = setup, folder, reporter
        self._facts = Facts(setup, folder, reporter, first_step)

    def note(self, text: str) -> None:
        """Keeps a line that belongs on the page, such as the pairs behind a warning."""
        self._facts.note(text)

    def evaluated(self, step: int, policy: CompletionScores | None) -> None:
        """Makes the page after an evaluation.

        Args:
          step: Steps done.
          policy: The scores of the TEST pairs, f32 `[N, 2]`, or None where there are none.
        """
        if not self._folder.writes:
            return
        # Before the page, which shows them.
        if policy is not None:
            keep_test_pairs(self._setup, self._folder, step, policy)
        self._facts.write(step)
        make_page(self._folder, self._reporter)


def finish_report(folder: RunFolder, reporter: Reporter) -> None:
    """Makes the page of a finished run, with all the time that it took.

    Args:
      folder: The run folder, with its summary.
      reporter: Knows the time and the phases.
    """
    if not folder.writes:
        return
    facts = folder.read_json(FACTS_FILE)
    # The export took time too, and only now is it known how much.
    if facts is not None:
        facts["sessions"][-1] |= {"seconds": reporter.seconds(), "phases": reporter.phases}
        folder.write_json(FACTS_FILE, facts)
    make_page(folder, reporter)


def make_page(folder: RunFolder, reporter: Reporter) -> None:
    """Writes the page, or says why it could not be made: no run ends for its page.

    Args:
      folder: The run folder.
      reporter: Where it is said.
    """
    try:
        write_report(folder.path)
    except Exception as error:  # noqa: BLE001 - hours of training are worth more than their page
        reporter.say(f"warning: the page of the run could not be made ({error}); the run goes on")
