"""Inspects preference data: prints a summary, writes the HTML report and the cleaned pairs."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from jaxdpo.data.config import DataConfig
from jaxdpo.data.packing.plan import BatchConfig
from jaxdpo.data.reading.reader import ReadResult, read_pairs
from jaxdpo.data.tokenization.chat import load_chat
from jaxdpo.data.writing import write_pairs
from jaxdpo.errors import UserError
from jaxdpo.inspection import cleaning
from jaxdpo.inspection.findings import find, turns
from jaxdpo.inspection.languages import language
from jaxdpo.inspection.page import page
from jaxdpo.inspection.shortcuts import find_shortcuts
from jaxdpo.inspection.texts import said
from jaxdpo.inspection.tokens import Tokenized, length_lines, tokenize
from jaxdpo.storage.files import replacing, shipped


class InspectConfig(BaseModel):
    """The data to inspect, and the files to write."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig = Field(description="the preference pairs")
    batch: BatchConfig = Field(
        default=BatchConfig(), description="steps and rows, for the forecast"
    )
    model: Annotated[str, AfterValidator(shipped)] | None = Field(
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

    @field_validator("data", mode="before")
    @classmethod
    def _skip_bad_lines(cls, data: object) -> object:
        # An inspection counts the bad lines that would stop a run.
        return {"on_error": "skip", **data} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _check_remedies(self) -> Self:
        if self.remedies and self.write is None:
            raise ValueError("remedies are given, but nothing is written; set write=clean.jsonl")
        return self


def inspect_pairs(config: InspectConfig) -> None:
    """Inspects the data, prints what is found, and writes the report and the cleaned pairs.

    Raises:
      UserError: If a source cannot be read, or the report or the pairs cannot be written.
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
        left, changes = cleaning.clean(read.pairs, config.remedies)
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
