"""Which settings of DPO serve a use case: tried on validation prompts, never on those of TEST."""

import json
from pathlib import Path
from typing import Any

from jaxdpo.hub.policy import Policy
from jaxdpo.runs.fit import fit
from jaxdpo.runs.sweep import name_of, settings_of
from jaxdpo.storage.files import replacing
from jaxdpo.use_cases.config import UseCasesConfig
from jaxdpo.use_cases.pipeline import (
    Workshop,
    answer_all,
    on_pairs,
    open_workshop,
    preference_pairs,
    summary,
    supervised_model,
    take,
)
from jaxdpo.use_cases.report import markdown
from jaxdpo.use_cases.task import Domain, UseCase

_DOMAINS: tuple[Domain, ...] = ("home", "away")


def sweep_use_case(case: UseCase, config: UseCasesConfig, axes: dict[str, list[Any]]) -> str:
    """Runs DPO with every combination of the axes' values, and measures each at temperature 1.

    Validation prompts are about names of the TRAIN split, drawn apart from those of the pairs.

    Returns:
      A table, which is also in `sweep.md`.
    """
    rows = [("seed", "setting", "failures", "away", "quality")]
    for seed in config.seeds:
        workshop = open_workshop(case, config, seed)
        sft = supervised_model(workshop)
        pairs = preference_pairs(workshop, sft)
        rows.append((str(seed), "SFT", *validated(workshop, sft)))
        for setting in settings_of(axes):
            chosen = [f"{field}={json.dumps(value)}" for field, value in setting.items()]
            overrides = [*config.dpo, *chosen]
            run = on_pairs(workshop, pairs, f"sweep/{name_of(setting)}", overrides, {})
            rows.append((str(seed), name_of(setting), *validated(workshop, fit(run, sft).policy)))
    table = markdown(rows)
    with replacing(Path(config.folder) / case.name / "sweep.md") as file:
        file.write(table)
    return table


def validated(workshop: Workshop, policy: Policy) -> tuple[str, str, str]:
    """A model's failures at home and away, and the quality of its answers at home."""
    case, seed, tests = workshop.case, workshop.seed, workshop.config.tests
    rates, qualities = [], []
    for domain in _DOMAINS:
        prompts = take(case, domain, "TRAIN", f"{seed} validation", tests)
        answered = answer_all(case, policy, prompts, 1, 1.0, seed)
        measured = summary(case, [answers[0] for answers in answered])
        rates.append(f"{100 * sum(measured['failed']) / tests:.1f}%")
        qualities.append(measured["quality"])
    quality = "; ".join(f"{name} {100 * value:.1f}" for name, value in qualities[0].items())
    return rates[0], rates[1], quality
