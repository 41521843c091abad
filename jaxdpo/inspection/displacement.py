"""Pairs whose training is likely to make their own chosen answers less likely, as a finding."""

from collections.abc import Sequence

from jaxdpo.inspection.findings import Finding
from jaxdpo.inspection.places import PlacesWriter


def displacement_finding(
    sources: Sequence[str], scores: Sequence[float], median: float, scored: int
) -> Finding:
    """Describes the pairs of the highest CHES scores (https://arxiv.org/abs/2410.08847).

    Args:
      sources: `file:line` of the pairs, highest first.
      scores: Their CHES scores by means of hidden states; at least one.
      median: Median of all pairs that were scored.
      scored: How many pairs that were.
    """
    places = PlacesWriter()
    for source in sources:
        places.add(source)
    return Finding(
        code="displacement",
        title=f"pairs of {scored} have the highest CHES scores, {scores[-1]:.2f} to "
        f"{scores[0]:.2f} (median {median:.2f}): the model sees their two answers as most alike, "
        "and training on them is the likeliest to make the chosen one less likely too",
        count=len(scores),
        where=places.finish(),
        remedy="read them; drop pairs whose answers differ in nothing that matters, or mix in the "
        "chosen answers (loss.type=[sigmoid,sft])",
    )
