"""Inspects preference data from its files to the printed summary and the HTML report."""

from collections import Counter
from pathlib import Path

from jaxdpo.data.reading.reader import ReadResult, read_pairs
from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.data.writing import write_pairs
from jaxdpo.errors import UserError
from jaxdpo.inspection.cleaning import clean
from jaxdpo.inspection.config import InspectConfig
from jaxdpo.inspection.findings import find, turns
from jaxdpo.inspection.languages import language
from jaxdpo.inspection.page import page
from jaxdpo.inspection.shortcuts import find_shortcuts
from jaxdpo.inspection.texts import said
from jaxdpo.inspection.tokens import Tokenized, length_lines, tokenize
from jaxdpo.storage.files import replacing


def inspect_data(config: InspectConfig) -> None:
    """Prints what is wrong with the data, and writes the report and the cleaned pairs.

    Raises:
      UserError: If a file cannot be read or written.
    """
    read = read_pairs(config.data.path, config.data)
    shortcuts = find_shortcuts(read.pairs)
    findings = find(read.pairs, shortcuts)
    tokenized = None
    if config.model is not None:
        chat = load_chat(config.model, config.data.chat_template)
        tokenized = tokenize(read.pairs, chat, config.data.max_length, config.batch, config.show)
        findings += tokenized.findings
    summary = read.report.summary()
    print(summary)
    for bad in read.bad_lines[:5]:
        print(f"  {bad}")
    for rule in shortcuts:
        print(f"{rule.name} alone is right in {rule.accuracy:.0%} ± {rule.interval:.0%}")
    for row in length_lines(tokenized.lengths) if tokenized else ():
        print("tokens of {}: median {}, 95% {}, longest {}".format(*row))
    print(
        "\n".join(tokenized.forecast if tokenized else ("set model=… to see tokens and packing",))
    )
    print("\n".join(f"[{f.code}] {f}" for f in findings) or "nothing was found")
    text = page(
        config.data.name(), summary, _counts(read, tokenized), findings, shortcuts, tokenized
    )
    _write_report(Path(config.report), text)
    print(f"report: {config.report}")
    if config.write is not None:
        left, changes = clean(read.pairs, config.remedies)
        write_pairs(left, Path(config.write))
        print("\n".join([*changes, f"{config.write}: {len(left)} pairs, {len(changes)} changes"]))


def _counts(read: ReadResult, tokenized: Tokenized | None) -> dict[str, str]:
    files = Counter((pair.source.rpartition(":")[0], pair.split) for pair in read.pairs)
    counts = {f"{split} pairs of {file}": str(count) for (file, split), count in files.items()}
    for name, count in Counter(language(said(pair.prompt)) for pair in read.pairs).most_common():
        counts[f"pairs with a prompt in {name}"] = str(count)
    for users, count in turns(read.pairs).items():
        counts[f"pairs with {users} messages by the user"] = str(count)
    if tokenized is not None:
        counts["pairs that can be used"] = str(len(tokenized.lengths))
    return counts


def _write_report(path: Path, text: str) -> None:
    try:
        with replacing(path) as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"report {path}: cannot be written: {error.strerror}") from error
