"""`python -m jaxdpo.inspect DATA [field=value …]`: what is wrong with preference data."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxdpo.cli.command import run_command
from jaxdpo.data.config import DataConfig
from jaxdpo.data.packing.plan import BatchConfig
from jaxdpo.data.reading.reader import ReadResult, read_pairs
from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.data.writing import write_pairs
from jaxdpo.errors import UserError, nearest
from jaxdpo.inspection import cleaning
from jaxdpo.inspection.findings import find, turns
from jaxdpo.inspection.languages import language
from jaxdpo.inspection.page import page
from jaxdpo.inspection.shortcuts import find_shortcuts
from jaxdpo.inspection.texts import said
from jaxdpo.inspection.tokens import Tokenized, length_lines, tokenize
from jaxdpo.storage.files import replacing

USAGE = """usage: python -m jaxdpo.inspect DATA [field=value …]

Says what is wrong with preference data, and writes a report. Bad lines are counted, not fatal.
Fields of data.… and batch.… are those of a run.
"""


class InspectConfig(BaseModel):
    """What is looked at, and what is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig = Field(description="the preference pairs")
    batch: BatchConfig = Field(
        default=BatchConfig(), description="steps and rows, for the forecast"
    )
    model: str | None = Field(
        default=None, description="folder or org/name whose tokenizer counts tokens"
    )
    report: str = Field(default="inspect.html", description="HTML file of the report")
    show: Annotated[int, Field(ge=0)] | tuple[int, ...] = Field(
        default=5,
        description="pairs that the report shows as tokens: how many, or [their line numbers]",
    )
    write: str | None = Field(default=None, description="JSONL file of the cleaned pairs")
    remedies: tuple[cleaning.Remedy, ...] = Field(
        default=(), description="for write: any of dedupe, conflicts, leaks, balance"
    )


def main(arguments: list[str]) -> None:
    """Inspects as the arguments say."""
    if not arguments or {"-h", "--help"} & set(arguments):
        fields = InspectConfig.model_fields.items()
        print(USAGE + "\n".join(f"  {name}: {field.description}" for name, field in fields))
        return
    config = parse(arguments)
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
        left, changes = cleaning.clean(read.pairs, config.remedies)
        write_pairs(left, Path(config.write))
        print("\n".join([*changes, f"{config.write}: {len(left)} pairs, {len(changes)} changes"]))


def parse(arguments: list[str]) -> InspectConfig:
    """The configuration that a command line says.

    Raises:
      UserError: For a mistake in it.
    """
    path, *rest = arguments
    values: dict[str, Any] = {"data": {"path": path, "on_error": "skip"}}
    for argument in rest:
        name, equals, text = argument.partition("=")
        section, dot, field = name.partition(".")
        known = [*InspectConfig.model_fields]
        if not equals or section not in known or bool(dot) != (section in ("data", "batch")):
            raise UserError(f"{argument}: write field=value{nearest(section, known)}; see --help")
        target = values.setdefault(section, {}) if dot else values
        try:
            target[field or section] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{argument}: the value is not valid YAML: {error}") from None
    try:
        config = InspectConfig.model_validate(values)
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError("\n".join(lines)) from None
    if config.remedies and config.write is None:
        raise UserError("remedies are given, but nothing is written; set write=clean.jsonl")
    return config


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


if __name__ == "__main__":
    sys.exit(run_command(main))
