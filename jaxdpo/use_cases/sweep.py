"""Settings of DPO for a use case, tried on validation prompts and never on those of TEST."""

import json
from pathlib import Path
from typing import Any

from jaxdpo.runs.fit import fit
from jaxdpo.runs.sweep import name_of, settings_of
from jaxdpo.storage.files import replacing
from jaxdpo.use_cases.config import UseCasesConfig
from jaxdpo.use_cases.pipeline import (
    Measured,
    compare_models,
    on_pairs,
    preference_pairs,
    supervised_model,
)
from jaxdpo.use_cases.report import markdown
from jaxdpo.use_cases.task import DOMAINS, Domain, UseCase
from jaxdpo.use_cases.workshop import Workshop, open_workshop


def sweep_use_case(case: UseCase, config: UseCasesConfig, axes: dict[str, list[Any]]) -> str:
    """Runs DPO with every combination of the axes' values, and measures each at temperature 1.

    Validation prompts are about names of the TRAIN split, drawn apart from those of the pairs.

    Args:
      case: The use case.
      config: Sizes, and the seeds that it is run with.
      axes: Field ↦ values.

    Returns:
      A table, which is also in `sweep.md`.
    """
    rows = [("seed", "setting", "failures", "shifted", "quality")]
    for seed in config.seeds:
        workshop = open_workshop(case, config, seed)
        models = {"SFT": supervised_model(workshop)}
        preference_pairs(workshop)
        for setting in settings_of(axes):
            chosen = [f"{field}={json.dumps(value)}" for field, value in setting.items()]
            name = name_of(setting)
            folder, overrides = f"sweep/{name}", [*config.dpo, *chosen]
            run = workshop.run(folder, case.name, overrides, on_pairs(workshop))
            models[name] = fit(run).folder / "model"
        measured = {domain: validated(workshop, models, domain) for domain in DOMAINS}
        rows += [
            (str(seed), name, *_shown({domain: measured[domain][name] for domain in DOMAINS}))
            for name in models
        ]
    table = markdown(rows)
    with replacing(Path(config.folder) / case.name / "sweep.md") as file:
        file.write(table)
    return table


def validated(workshop: Workshop, models: dict[str, Path], domain: Domain) -> dict[str, Measured]:
    """Measures models on validation prompts.

    Args:
      workshop: The seed of the use case.
      models: Name ↦ folder.
      domain: Domain of the prompts.
    """
    # A folder for each setting: a later sweep with further settings samples those alone.
    prompts = workshop.prompts(domain, "TRAIN", "validation", workshop.config.tests)
    found = {}
    for name, path in models.items():
        folder = workshop.folder / "sweep" / f"validation-{domain}" / name
        found |= compare_models(workshop, {name: path}, prompts, 1.0, folder)
    return found


def _shown(measured: dict[Domain, Measured]) -> tuple[str, str, str]:
    """Returns a model's failures in both domains, and the quality of its in-domain answers."""
    rates = [f"{100 * sum(m.failed) / len(m.failed):.1f}%" for m in measured.values()]
    quality = measured["in-domain"].quality
    said = "; ".join(f"{name} {100 * value:.1f}" for name, value in quality.items())
    return rates[0], rates[1], said
