"""Inspects preference data, from its files to the printed summary and the HTML report."""

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jaxdpo.cli.console import Reporter
from jaxdpo.data.bad_pair import BadLine
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.bad_lines import BadLines
from jaxdpo.data.reading.reader import Met, Reading
from jaxdpo.data.reading.reports import ReadReport
from jaxdpo.data.reading.sources import find_sources
from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.data.writing import write_pairs
from jaxdpo.errors import UserError
from jaxdpo.inspection.cleaning import decide
from jaxdpo.inspection.config import InspectConfig
from jaxdpo.inspection.findings import Finding, find
from jaxdpo.inspection.languages import language
from jaxdpo.inspection.page import page
from jaxdpo.inspection.shortcuts import Shortcut, find_shortcuts
from jaxdpo.inspection.survey import Survey, Surveyor
from jaxdpo.inspection.texts import said
from jaxdpo.inspection.tokens import TokenCounter, Tokenized, length_lines
from jaxdpo.pages.cells import plural
from jaxdpo.storage.files import replacing

# Records that tell pairs from supervised examples.
_PEEKED = 100
_SHOWN_BAD_LINES = 5


def inspect_data(
    config: InspectConfig,
    reporter: Reporter | None = None,
    more_findings: Sequence[Finding] = (),
) -> list[Finding]:
    """Prints what is wrong with the data, and writes the report and the cleaned pairs.

    Args:
      config: What to inspect, and what to write.
      reporter: Where it is said and progress is shown; by default on the terminal.
      more_findings: Findings made by what this package does not import, such as a model's weights.

    Returns:
      All findings; none for clean data.

    Raises:
      UserError: If a file cannot be read or written.
    """
    reporter = reporter or Reporter()
    supervised = config.supervised
    if supervised is None:
        supervised = _has_one_answer(config)
    if config.write is not None and supervised and config.data.turns == "all":
        raise UserError(
            "write: with data.turns=all each answer of a conversation is an example of its own, "
            "and would be read as several when the file is read again; leave data.turns out"
        )
    # Everything is read once and held nowhere: each pair leaves a few hundred bytes behind.
    surveyor = Surveyor(config.data.weight_key)
    counter = None
    if config.model is not None:
        chat = load_chat(config.model, config.data.chat_template)
        counter = TokenCounter(chat, config.data.max_length, config.show)
    reading = Reading(config.data.weights(), config.data, supervised)
    bad_lines = BadLines()
    for pair in _pairs(reading, config, reporter, bad_lines):
        surveyor.add(pair)
        if counter is not None:
            counter.add(pair)
    report = reading.report(bad_lines.counts)
    survey = surveyor.finish()
    with reporter.phase("trying trivial rules"):
        shortcuts = find_shortcuts(survey.sample)
    findings = [*find(survey, shortcuts), *more_findings]
    tokenized = None if counter is None else counter.finish(config.batch)
    if tokenized is not None:
        findings += tokenized.findings
    summary = report.summary()
    _print(reporter, summary, bad_lines, findings, shortcuts, tokenized)
    counts = _counts(report, survey, tokenized)
    text = page(config, summary, counts, findings, shortcuts, tokenized)
    _write_report(Path(config.report), text)
    reporter.say(f"report: {config.report}")
    if config.write is not None:
        _write_cleaned(config, survey, supervised, reporter)
    return findings


def _has_one_answer(config: InspectConfig) -> bool:
    """Returns whether the first records are supervised examples, and not pairs or labelled."""
    data = config.data
    if data.format not in (None, "messages"):
        return False
    # Reading the first records both ways asks the reader itself, whatever forms it knows. A file of
    # neither kind ends in its own error when it is read.
    firsts: list[Met | BadLine] = []
    with contextlib.suppress(UserError):
        firsts = list(itertools.islice(Reading(data.weights(), data, supervised=False), _PEEKED))
    if any(isinstance(met, Met) for met in firsts):
        return False
    with contextlib.suppress(UserError):
        firsts = list(itertools.islice(Reading(data.weights(), data, supervised=True), _PEEKED))
        return any(isinstance(met, Met) for met in firsts)
    # Neither: reading them as pairs says what is wrong.
    return False


def _pairs(
    reading: Reading, config: InspectConfig, reporter: Reporter, bad_lines: BadLines
) -> Iterator[PreferencePair]:
    """Yields the pairs of the data, takes note of its bad lines and shows progress."""
    with _progress(config, reporter) as advance:
        # Weights repeat a record's pairs, but it is read once.
        record = None
        for met in reading:
            if isinstance(met, BadLine):
                bad_lines.add(met)
                advance(len(met.raw) + 1)
                continue
            if met.record is not record:
                record = met.record
                advance(len(record.raw) + 1)
            yield met.pair


@contextlib.contextmanager
def _progress(config: InspectConfig, reporter: Reporter) -> Iterator[Callable[[int], None]]:
    """Shows a bar over the bytes of plain text files; other kinds do not tell where they are."""
    sources = [each for name in config.data.weights() for each in find_sources(name)]
    plain = all(not s.hub and s.name.endswith((".jsonl", ".ndjson")) for s in sources)
    what = f"reading {config.data.name()}"
    if not plain:
        reporter.say(f"{what} …")
        with reporter.phase(what):
            yield lambda count: None
        return
    total = sum(os.stat(os.path.expanduser(source.name)).st_size for source in sources)
    with reporter.transfer(what, total) as advance:
        yield advance


def _print(
    reporter: Reporter,
    summary: str,
    bad_lines: BadLines,
    findings: Sequence[Finding],
    shortcuts: Sequence[Shortcut],
    tokenized: Tokenized | None,
) -> None:
    reporter.say(summary)
    for bad in bad_lines.first[:_SHOWN_BAD_LINES]:
        reporter.say(f"  {bad}")
    for rule in shortcuts:
        reporter.say(f"{rule.name} alone predicts the chosen answer for {rule.share()}")
    for row in length_lines(tokenized.lengths) if tokenized else ():
        reporter.say("tokens of {}: median {}, 95% {}, longest {}".format(*row))
    for line in tokenized.forecast if tokenized else ("set model=… to see tokens and packing",):
        reporter.say(line)
    for finding in findings:
        reporter.say(f"[{finding.code}] {finding}")
    if not findings:
        reporter.say("nothing was found")


def _counts(report: ReadReport, survey: Survey, tokenized: Tokenized | None) -> dict[str, str]:
    files, places = survey.places.files, survey.places
    counts = {}
    for number, file in enumerate(files):
        for split, of_split in (("TRAIN", survey.train_N), ("TEST", ~survey.train_N)):
            if count := int((of_split & (places.file_N == number)).sum()):
                counts[f"{split} pairs of {file}"] = f"{count:,}"
    for code, count in report.rejected.items():
        counts[f"bad lines [{code}]"] = f"{count:,}"
    sampled = "" if len(survey.sample) == len(survey) else f", of {len(survey.sample):,} drawn"
    languages = Counter(language(said(pair.prompt)) for pair in survey.sample)
    for name, count in languages.most_common():
        counts[f"pairs with a prompt in {name}{sampled}"] = f"{count:,}"
    for users, count in survey.turns.items():
        counts[f"pairs with {users} {plural('message', users)} by the user"] = f"{count:,}"
    counts["pairs that the trivial rules were tried on"] = f"{len(survey.sample):,}"
    if tokenized is not None:
        counts["pairs that can be used"] = f"{len(tokenized.lengths):,}"
    return counts


def _write_report(path: Path, text: str) -> None:
    try:
        with replacing(path) as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"report {path}: cannot be written: {error.strerror}") from error


def _write_cleaned(
    config: InspectConfig, survey: Survey, supervised: bool, reporter: Reporter
) -> None:
    """Reads the data a second time and writes what the remedies leave of it."""
    assert config.write is not None
    # The survey knows each pair by its number in the order of reading, which is the same again.
    changes = decide(survey, config.remedies)
    reading = Reading(config.data.weights(), config.data, supervised)
    left = changes.apply(_pairs(reading, config, reporter, BadLines()))
    write_pairs(left, Path(config.write), single=survey.single)
    for line in changes.lines:
        reporter.say(line)
    count = len(survey) - int(changes.dropped_N.sum())
    reporter.say(f"{config.write}: {count} pairs, {len(changes.lines)} changes")
