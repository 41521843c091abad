"""Inspection of preference data, with a model's weights where they are asked for."""

from jaxdpo.inspection.config import InspectConfig
from jaxdpo.inspection.findings import Finding
from jaxdpo.inspection.run import inspect_data


def inspect(config: InspectConfig) -> list[Finding]:
    """Says what is wrong with preference data, and writes the report and the cleaned pairs.

    >>> inspect(InspectConfig(data="pairs.jsonl", model="models/sft"))  # doctest: +SKIP

    Args:
      config: The data to inspect, and the files to write.

    Returns:
      All findings; none for clean data.

    Raises:
      UserError: If the data or the model cannot be read, or a file cannot be written.
    """
    findings = []
    if config.displacement and config.model is not None:
        # Weights and JAX are loaded for this alone: looking at data takes a second without.
        from jaxdpo.inspection.displacement import displacement_finding
        from jaxdpo.runs.displacement import displacing_pairs_of_data

        found = displacing_pairs_of_data(
            config.model, config.data, config.batch, config.displacement
        )
        sources, scores = zip(*found.pairs, strict=True)
        findings = [displacement_finding(sources, scores, found.median, found.scored)]
    return inspect_data(config, more_findings=findings)
