"""Rounds of alignment: sample, judge, pair, train; and again with the trained model.

<folder>/round_1/generations.jsonl, judgements.jsonl, pairs.jsonl   answers of the round's model
<folder>/round_1/feedback.jsonl                                     people's pairs, as they were
<folder>/round_1/server.log                                         what a started server said
<folder>/round_1/run/                                               the training run; model/ in it
<folder>/final/generations.jsonl, judgements.jsonl                  answers of the last model
<folder>/rounds.json, rounds.png                                    the pass rate by round

Each stage continues where it was cut off, and one that is finished is not done again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from jaxdpo.cli.console import Reporter
from jaxdpo.cli.settings import checked, read_yaml
from jaxdpo.config import RunConfig
from jaxdpo.data.config import DataConfig
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.reader import read_pairs
from jaxdpo.data.writing import write_pairs
from jaxdpo.errors import UserError
from jaxdpo.evaluation.agreement import Estimate
from jaxdpo.evaluation.judgement_file import JudgedLine, pass_rates
from jaxdpo.feedback.collecting import collect
from jaxdpo.generation.server import is_server
from jaxdpo.generation.started_server import (
    StartedServer,
    StartedServerConfig,
    orderly_termination,
)
from jaxdpo.rounds.answering import JudgedModels
from jaxdpo.rounds.make_pairs import AnswersConfig, judged_answers, keep_config, paired_answers
from jaxdpo.runs.fit import fit
from jaxdpo.storage.files import replacing, shipped

# Set for each round by the rounds themselves, so a user's value is refused.
_OURS = (("model", "path"), ("data", "path"), ("training", "folder"))
Rates = dict[str, Estimate]


class RoundsConfig(AnswersConfig):
    """Rounds of alignment: their number, the model they begin with, and how each is trained."""

    model: Annotated[str, AfterValidator(shipped)] = Field(
        description="the first round's model: folder, or org/name on the Hub"
    )
    folder: str = Field(description="for all files; the same one again continues")
    rounds: int = Field(default=3, ge=1, description="how often a model is trained")
    train: str | dict[str, Any] = Field(
        default_factory=dict,
        description="a training run's configuration, or its YAML file; the rounds set model.path, "
        "data.path and training.folder",
    )
    feedback: str | tuple[str, ...] = Field(
        default=(),
        description="studios' folders or logs of events, whose pairs each round trains on as well, "
        "as they are when it gets there",
    )
    server: StartedServerConfig | None = Field(
        default=None,
        description="a server that is started on each round's model to answer, and that anybody "
        "may ask meanwhile; default: the model answers within this process",
    )
    reference: Literal["previous", "first"] = Field(
        default="previous",
        description="the reference model: what the round begins with, or the first round's model",
    )

    @field_validator("model")
    @classmethod
    def _trainable(cls, model: str) -> str:
        if is_server(model):
            raise ValueError(f"{model} is a server's; only a model that is here can be trained")
        return model


def iterate(config: RoundsConfig, reporter: Reporter | None = None) -> list[Rates]:
    """Runs the rounds, and says how many answers pass before the first and after each.

    The rounds end early where no prompt has answers of which one is better.

    Args:
      config: The rounds.
      reporter: Shows the progress; by default on the terminal.

    Returns:
      Pass rates of the first model and of that of each round, on TEST prompts if there are any.

    Raises:
      UserError: For whatever the user can fix; what is done is kept.
    """
    reporter = reporter or Reporter()
    folder = Path(config.folder).expanduser()
    for number in range(1, config.rounds + 1):
        round_config(config, number, config.model)  # a mistake is said before anything is sampled
    keep_config(config, folder)
    # Each round's model is an ordinary run's export, so a round can be looked into, continued or
    # taken up by other tools like any run.
    model, rates = config.model, []
    for number in range(1, config.rounds + 1):
        # Stages find their own files there, and do nothing that is done.
        here = folder / f"round_{number}"
        reporter.say(f"round {number} of {config.rounds}: {model}")
        judged = _judged(config, model, here, reporter)
        rates.append(tested_rates(judged.judged.lines))
        _show(rates, folder, reporter)
        pairs, collected = paired_answers(config, here)
        reporter.say(collected.summary())
        if config.feedback:
            pairs = with_feedback(collected.pairs, config.feedback, here, reporter)
        if pairs is None:
            reporter.say(f"round {number}: no prompt has answers of which one is better; this ends")
            return rates
        fit(round_config(config, number, model))
        model = str(here / "run" / "model")
    judged = _judged(config, model, folder / "final", reporter)
    rates.append(tested_rates(judged.judged.lines))
    _show(rates, folder, reporter)
    reporter.say(f"the last model: {model}")
    return rates


def _judged(config: RoundsConfig, model: str, folder: Path, reporter: Reporter) -> JudgedModels:
    """Answers with a round's model and judges, by a server that is started for it if one is set."""
    if config.server is None:
        return judged_answers(config, model, folder, reporter)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error
    # It ends before training begins, which needs the memory.
    log = folder / "server.log"
    with (
        orderly_termination(),
        StartedServer(config.server, model, log, reporter.say) as server,
    ):
        return judged_answers(config, model, folder, reporter, server)


def with_feedback(
    pairs: Sequence[PreferencePair], feedback: str | Sequence[str], folder: Path, reporter: Reporter
) -> Path | None:
    """Adds people's pairs to those of a round, in its `pairs.jsonl`; None if there are neither.

    Args:
      pairs: The round's own pairs.
      feedback: Studios' folders or logs of events.
      folder: The round's folder; the people's pairs are kept in its `feedback.jsonl`.
      reporter: Shows what was gathered.

    Raises:
      UserError: If the feedback cannot be read.
    """
    kept = folder / "feedback.jsonl"
    if not kept.exists():
        collected = collect("events", feedback)
        reporter.say(f"feedback: {collected.summary()}")
        write_pairs(collected.pairs, kept)
    # People go on judging while a round is trained. What it trains on was settled when it began, so
    # that the same command continues it.
    people: Sequence[PreferencePair] = ()
    if kept.stat().st_size:
        people = read_pairs(str(kept), DataConfig(path=str(kept))).pairs
    if not pairs and not people:
        return None
    target = folder / "pairs.jsonl"
    write_pairs([*pairs, *people], target)
    return target


def round_config(config: RoundsConfig, number: int, model: str) -> RunConfig:
    """Returns the configuration of one round's training.

    Args:
      config: The rounds.
      number: Number of the round, from 1.
      model: The model that the round begins with.

    Raises:
      UserError: If it sets what the rounds set, or is no configuration of a run.
    """
    given = config.train
    values = read_yaml(Path(given).expanduser()) if isinstance(given, str) else given
    here = Path(config.folder).expanduser() / f"round_{number}"
    ours = (model, str(here / "pairs.jsonl"), str(here / "run"))
    # Copies, a level deep: a configuration that was given in Python stays its owner's.
    values = {name: dict(section) if isinstance(section, dict) else section
              for name, section in values.items()}  # fmt: skip
    for (section, field), value in zip(_OURS, ours, strict=True):
        if field in values.setdefault(section, {}):
            raise UserError(f"train.{section}.{field}: the rounds set it; leave it out")
        values[section][field] = value
    # In the first round both are the same model, and no second copy is loaded.
    if config.reference == "first" and number > 1:
        reference = values.setdefault("reference", {})
        if reference.setdefault("path", config.model) != config.model:
            raise UserError("train.reference.path: reference=first sets it; leave it out")
    return checked(RunConfig, values, "train: ")


def tested_rates(judged: list[JudgedLine]) -> Rates:
    """Computes pass rates of the answers to TEST prompts; to all where there are none.

    Rounds train on the pairs of TRAIN prompts alone, so TEST shows what was learnt and not what was
    remembered.
    """
    return pass_rates([line for line in judged if line.split == "TEST"] or judged)


def _show(rates: list[Rates], folder: Path, reporter: Reporter) -> None:
    names = list(rates[0])
    rows = [(f"after {i}" if i else "before", *(str(each.get(name, "")) for name in names))
            for i, each in enumerate(rates)]  # fmt: skip
    reporter.table("Answers that pass, by round", ("round", *names), rows)
    # JSON has no NaN, which a rate of no answers is.
    listed = [
        {name: None if rate.value != rate.value else rate._asdict() for name, rate in each.items()}
        for each in rates
    ]
    # After every round: who interrupts the third still has the table of two.
    with replacing(folder / "rounds.json") as file:
        json.dump(listed, file, indent=1, allow_nan=False)
    plot_rates(rates, folder / "rounds.png")


def plot_rates(rates: list[Rates], path: Path) -> None:
    """Draws the pass rate of each criterion by round, with its interval."""
    # Imported here: it takes a second, and most commands draw nothing.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    # Of one criterion "all" is the same curve again.
    names = [name for name in rates[0] if name != "all" or len(rates[0]) > 2]
    for name in names:
        rounds = [i for i, each in enumerate(rates) if name in each]
        values = [rates[i][name] for i in rounds]
        # Matplotlib takes the interval's ends as distances from the value.
        below = [each.value - each.low for each in values]
        above = [each.high - each.value for each in values]
        heights = [each.value for each in values]
        axes.errorbar(rounds, heights, (below, above), marker="o", capsize=3, label=name)
    axes.set(xlabel="rounds of training", ylabel="answers that pass", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend()
    with replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)
