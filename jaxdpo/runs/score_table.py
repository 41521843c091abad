"""Sums scores up: a line an answer, a table by group, the best answers, and selected pairs."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxdpo.data.generations import Generation
from jaxdpo.data.pairs import PreferencePair
from jaxdpo.data.reading.splits import prompt_digest
from jaxdpo.errors import UserError
from jaxdpo.evaluation.agreement import share
from jaxdpo.runs.score_config import Selection


class Table(NamedTuple):
    """A table of text, as the console shows it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Scored:
    """Answers and their scores, N pairs; a single answer stands as a pair's chosen one.

    Attributes:
      pairs: The pairs, in the order of the data.
      generations: The answers of a file of generations, in the same order; else empty.
      tokens: i32 `[N, 2]`, scored tokens of chosen and rejected; 0 where there is none.
      logps: f32 `[N, 2]`, log-probs in nats under the model, summed over tokens.
      reference_logps: f32 `[N, 2]`, under the reference; None without one.
      beta: Reward of a nat.
    """

    pairs: tuple[PreferencePair, ...]
    generations: tuple[Generation, ...]
    tokens: np.ndarray
    logps: np.ndarray
    reference_logps: np.ndarray | None
    beta: float

    @property
    def rewards(self) -> np.ndarray | None:
        """Implicit rewards, f32 `[N, 2]`; None without a reference."""
        if self.reference_logps is None:
            return None
        return self.beta * (self.logps - self.reference_logps)


def margins(scored: Scored) -> np.ndarray:
    """Returns chosen less rejected, f32 `[N]`: of the rewards, or of log-probs without a reference.

    NaN stands where there is no rejected answer.
    """
    values = scored.logps if scored.rewards is None else scored.rewards
    # A rejected answer of no tokens is one that is not there: an empty one has its end token.
    paired = scored.tokens[:, 1] > 0
    return np.where(paired, values[:, 0] - values[:, 1], np.nan)


def ranks(scored: Scored) -> np.ndarray:
    """Returns each line's place, i32 `[N]`, 1 for the best.

    Pairs are ranked by their margin among all pairs; single answers by their reward, or log-prob
    without a reference, among those to the same prompt. Equal values share the better place.
    """
    values = scored.logps if scored.rewards is None else scored.rewards
    gaps = margins(scored)
    groups: defaultdict[Any, list[int]] = defaultdict(list)
    for i, pair in enumerate(scored.pairs):
        single = bool(np.isnan(gaps[i]))
        groups[prompt_digest(pair.prompt, pair.tools) if single else "pairs"].append(i)
    # Pairs stand in one ranking, because their margins compare across prompts. Rewards of single
    # answers do not: each holds a term of its prompt that cancels within a prompt alone.
    places = np.zeros(len(gaps), np.int32)
    for name, members in groups.items():
        ranked = gaps[members] if name == "pairs" else values[members, 0]
        # A place is 1 and the number of better values: equal ones share it. All comparisons at once
        # take the square of a group's size, which is small or scored in minutes anyway.
        places[members] = 1 + (ranked[:, None] < ranked[None, :]).sum(axis=1)
    return places


def score_lines(scored: Scored) -> Iterator[dict[str, Any]]:
    """Yields a record for each pair or answer: where it stands, its scores, margin and rank."""
    gaps, places = margins(scored), ranks(scored)
    for i, pair in enumerate(scored.pairs):
        line: dict[str, Any] = {
            "source": pair.source,
            "id": prompt_digest(pair.prompt, pair.tools).hex(),
            "split": pair.split,
            "metadata": pair.metadata,
        }
        for side, name in enumerate(("chosen", "rejected")):
            if scored.tokens[i, side]:
                line[name] = _side(scored, i, side)
        if not np.isnan(gaps[i]):
            line["margin" if scored.rewards is not None else "logp_margin"] = float(gaps[i])
        yield {**line, "rank": int(places[i])}


def _side(scored: Scored, i: int, side: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "logp": float(scored.logps[i, side]),
        "tokens": int(scored.tokens[i, side]),
    }
    if scored.reference_logps is not None and scored.rewards is not None:
        found["reference_logp"] = float(scored.reference_logps[i, side])
        found["reward"] = float(scored.rewards[i, side])
    return found


def tables(scored: Scored, group_by: str | None) -> list[Table]:
    """Returns a table of the pairs and one of the single answers, where there are any.

    Args:
      scored: The scores.
      group_by: Field of metadata; each of its values has a row.

    Raises:
      UserError: If no metadata has the field.
    """
    if group_by is not None and not any(group_by in pair.metadata for pair in scored.pairs):
        known = sorted({name for pair in scored.pairs for name in pair.metadata})
        raise UserError(
            f"group_by={group_by}: no line's metadata has it; there are "
            f"{', '.join(known) or 'no fields'}"
        )
    gaps = margins(scored)
    found = []
    for title, members in (
        ("Pairs", np.flatnonzero(~np.isnan(gaps))),
        ("Single answers", np.flatnonzero(np.isnan(gaps))),
    ):
        if not len(members):
            continue
        groups: dict[str, np.ndarray] = {}
        if group_by is not None:
            names = np.array([str(scored.pairs[i].metadata.get(group_by, "")) for i in members])
            groups = {name or "(none)": members[names == name] for name in sorted({*names})}
        # Last, so that the row of all lines stands at the table's foot.
        groups["all"] = members
        header, rows = _rows(scored, gaps, groups, title == "Pairs")
        found.append(Table(title, (group_by or "", *header), rows))
    return found


def _rows(
    scored: Scored, gaps: np.ndarray, groups: dict[str, np.ndarray], paired: bool
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Returns the header and the rows of a table: means over each group's members."""
    # At least one token, because a missing side has none; its column is not shown.
    per_token = scored.logps / np.maximum(scored.tokens, 1)
    sides = ("chosen", "rejected") if paired else ("answer",)
    header = ["lines", *(("prefers chosen (95%)", "margin") if paired else ())]
    for name in sides:
        header += [f"reward {name}"] if scored.rewards is not None else []
        header.append(f"nats a token {name}")
    rows = []
    for group, at in groups.items():
        row = [group, str(len(at))]
        if paired:
            # A tie is no preference for the chosen answer.
            right = float((gaps[at] > 0).sum())
            row += [str(share(right, len(at))), f"{gaps[at].mean():.4f}"]
        for side in range(len(sides)):
            if scored.rewards is not None:
                row.append(f"{scored.rewards[at, side].mean():.4f}")
            row.append(f"{per_token[at, side].mean():.4f}")
        rows.append(tuple(row))
    return tuple(header), tuple(rows)


def best_answers(scored: Scored) -> list[Generation]:
    """Returns each prompt's answer with the highest reward, in the order of the prompts.

    Raises:
      UserError: If the data is no file of generations.
    """
    if not scored.generations:
        raise UserError(
            "best reads a file of generations, several answers to each prompt, as "
            "`python -m jaxdpo.sample … samples=4` writes it; leave best out"
        )
    # Of equal answers the first stands: its number is the lowest.
    best: dict[str, Generation] = {}
    for answer, place in zip(scored.generations, ranks(scored), strict=True):
        if place == 1:
            best.setdefault(answer.id, answer)
    return list(best.values())


def select_pairs(scored: Scored, selection: Selection) -> tuple[list[PreferencePair], str]:
    """Selects TRAIN pairs by the margin of their rewards; TEST pairs all stay, to test fairly.

    Args:
      scored: The scores.
      selection: Bounds and share.

    Returns:
      The pairs, in the order of the data, and the counts in words.

    Raises:
      UserError: If no TRAIN pair is left.
    """
    gaps = margins(scored)
    train = np.array([pair.split == "TRAIN" for pair in scored.pairs]) & ~np.isnan(gaps)
    low = -np.inf if selection.at_least is None else selection.at_least
    high = np.inf if selection.at_most is None else selection.at_most
    within = np.flatnonzero(train & (gaps >= low) & (gaps <= high))
    wanted = int(np.ceil(selection.share * len(within)))
    order = gaps[within] if selection.keep == "smallest" else -gaps[within]
    selected = set(within[np.argsort(order, kind="stable")[:wanted]].tolist())
    test = int((~train & ~np.isnan(gaps)).sum())
    said = f"{len(selected)} of {int(train.sum())} TRAIN pairs"
    if len(within) < train.sum():
        below, above = int((train & (gaps < low)).sum()), int((train & (gaps > high)).sum())
        said += f" ({below} have a smaller margin, {above} a larger one)"
    if wanted < len(within):
        said += f", those with the {selection.keep} margins of {len(within)} within the bounds"
    if not selected:
        raise UserError(f"data.select: {said}; nothing is left to train on, widen the bounds")
    chosen = [pair for i, pair in enumerate(scored.pairs) if i in selected or not train[i]]
    return chosen, f"{said}, and all {test} TEST pairs"
