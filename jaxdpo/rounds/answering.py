"""The one way from prompts to judged answers: `prefer`, `iterate`, `evaluate`, best of n.

Answers and judgements are files, and both continue where they were cut off.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxdpo.cli.console import Reporter
from jaxdpo.data.generations import Generation
from jaxdpo.data.reading.prompts import Prompt
from jaxdpo.errors import UserError
from jaxdpo.evaluation.criteria.builtin import Builtin
from jaxdpo.evaluation.criteria.spec import Spec, label_of
from jaxdpo.evaluation.judgement_file import JudgedAnswers, judge_to_file
from jaxdpo.generation.to_file import Source, sample_to_file


@dataclass(frozen=True)
class AnswerFiles:
    """Places of the files that judged answers are kept in.

    Attributes:
      generations: Name of a model ↦ the file of its answers.
      judgements: The file of all judgements.
    """

    generations: Mapping[str, Path]
    judgements: Path


@dataclass(frozen=True)
class JudgedModels:
    """Answers of models to the same prompts, and the judgements of them.

    Attributes:
      answers: Name of a model ↦ its answers, each prompt's samples together.
      judged: The judgements, of one model's answers after another's; none without criteria.
    """

    answers: dict[str, list[Generation]]
    judged: JudgedAnswers


def sample_and_judge(
    sources: Iterable[tuple[str, Source]],
    prompts: Sequence[Prompt],
    samples: int,
    criteria: Sequence[Spec],
    files: AnswerFiles,
    reporter: Reporter,
) -> JudgedModels:
    """Lets models answer prompts, and criteria judge the answers.

    Args:
      sources: Names and models. They are taken one at a time, so a generator that loads each when
        its turn comes holds no more than it must.
      prompts: The prompts.
      samples: Answers of each model to each prompt.
      criteria: The criteria; without any, nothing is judged.
      files: Places of the files.
      reporter: Shows the progress.

    Raises:
      UserError: For whatever the user can fix; what is done is kept.
    """
    answers: dict[str, list[Generation]] = {}
    for name, source in sources:
        # All prompts of one model before the next: its weights are loaded once.
        with reporter.bar(f"{name} answers", len(prompts) * samples) as advance:
            path = files.generations[name]
            answers[name] = sample_to_file(path, source, prompts, samples, advance)
    if not criteria:
        return JudgedModels(answers, JudgedAnswers([], {}))
    # Under the names that the user has given: one model may be compared with itself under two, and
    # a file of judgements that is read alone says which answers are whose.
    named = [
        answer.model_copy(update={"model": name})
        for name, given in answers.items()
        for answer in given
    ]
    with reporter.bar("judgements", len(named) * len(criteria)) as advance:
        judged = judge_to_file(files.judgements, named, criteria, advance)
    return JudgedModels(answers, judged)


def check_judgeable(
    criteria: Sequence[Spec], prompts: Sequence[Prompt], reporter: Reporter
) -> None:
    """Says before anything is sampled which prompts criteria have nothing to compare with.

    Args:
      criteria: The criteria; of functions and LLM judges nothing is known beforehand.
      prompts: The prompts.
      reporter: Shows the criteria that cannot judge answers to some of the prompts.

    Raises:
      UserError: If a criterion can judge no prompt's answers: no pair could come of them.
    """
    for spec in criteria:
        # A function or an LLM judge can look at anything: nothing is known before they are asked.
        if not isinstance(spec, Builtin):
            continue
        why = [(prompt, reason) for prompt in prompts if (reason := spec.unjudgeable(prompt))]
        if not why:
            continue
        first, reason = why[0]
        said = f"(the first: {first.source or first.id}: {reason})"
        # With all of them a mistake in the criterion, with some perhaps meant: only said.
        if len(why) == len(prompts):
            raise UserError(
                f"no answer could be judged by every criterion: {label_of(spec)} can judge answers "
                f"to none of the {len(prompts)} prompts {said}; set its fields to what these "
                "prompts have, or leave it out"
            )
        reporter.say(
            f"criterion {label_of(spec)} cannot judge answers to {len(why)} of {len(prompts)} "
            f"prompts {said}; those answers are left out"
        )
