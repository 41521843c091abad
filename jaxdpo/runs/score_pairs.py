"""Scores pairs and answers under a model and a reference: log-probs and implicit rewards.

The implicit reward of an answer y to x is β (log π(y|x) − log π_ref(y|x)) (Rafailov et al. 2023,
arXiv 2305.18290, section 5.1), up to a term of the prompt alone that no comparison sees.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdpo.cli.console import Reporter
from jaxdpo.data.bad_pair import BadLine, BadPair
from jaxdpo.data.generations import Generation, read_generations
from jaxdpo.data.packing.plan import (
    BatchConfig,
    Packer,
    choose_row_length,
    longest_sequence,
    scoring_shape,
)
from jaxdpo.data.pairs import PreferencePair, TokenizedPair
from jaxdpo.data.reading.bad_lines import handle_bad_lines
from jaxdpo.data.reading.reader import Reading
from jaxdpo.data.tokenization.chat import Chat
from jaxdpo.data.tokenization.truncation import truncate
from jaxdpo.data.writing import write_pairs
from jaxdpo.devices.sharding import MeshConfig, batch_shards, make_mesh
from jaxdpo.errors import UserError
from jaxdpo.hub.policy import Policy, on_mesh
from jaxdpo.model.attention.dense import LAYOUTS, AttentionKind
from jaxdpo.model.compute import Compute
from jaxdpo.runs.load import open_source
from jaxdpo.runs.score_config import ScoreConfig, ScoredData
from jaxdpo.runs.score_table import Scored, best_answers, score_lines, select_pairs, tables
from jaxdpo.scoring.dataset_pass import score_pairs
from jaxdpo.scoring.planned_pairs import PairColumns, PlannedPairs
from jaxdpo.scoring.score import make_score_step
from jaxdpo.storage.files import refuse_existing, replacing

# Pairs that are encoded together, for the tokenizer's own threads.
_BATCH = 512


@dataclass(frozen=True)
class _Answers:
    """Tokenised answers in memory, as packing reads them."""

    tokenized: Sequence[TokenizedPair]
    pairs: Sequence[PreferencePair]

    def __len__(self) -> int:
        return len(self.tokenized)

    def __getitem__(self, index: int) -> TokenizedPair:
        return self.tokenized[index]

    def source(self, index: int) -> str:
        return self.pairs[index].source

    def lengths(self) -> np.ndarray:
        """Tokens of prompt, chosen and rejected, i32 `[N, 3]`."""
        counted = [[len(ids) for ids in each[:3]] for each in self.tokenized]
        return np.array(counted, np.int32).reshape(-1, 3)


def score(
    config: ScoreConfig, policy: Policy | None = None, reference: Policy | None = None
) -> Scored:
    """Scores answers, writes the scores, and shows them as a table.

    >>> config = ScoreConfig(model="runs/dpo", reference="models/sft", out="scores.jsonl",
    ...                      data={"path": "rewardbench.jsonl"}, group_by="subset")
    >>> scored = jaxdpo.score(config)
    >>> scored.rewards[:, 0] > scored.rewards[:, 1]  # where the model prefers the chosen answer

    Args:
      config: The scoring.
      policy: A model in memory, instead of the one at `model`.
      reference: A reference in memory, instead of the one at `reference`.

    Raises:
      UserError: If a model or the data cannot be read, the two vocabularies differ, or a file is
        there already.
    """
    reporter = Reporter()
    # What cannot be written is said before anything is scored.
    for path in (config.out, config.best, config.write):
        if path is not None and not config.overwrite:
            refuse_existing(Path(path))
    opened = policy or open_source(config.model, config.data.chat_template)
    pairs, generations = read_answers(config.data)
    answers, kept = tokenize(pairs, opened.chat, config.data.max_length, reporter)
    reporter.say(f"{config.data.name()}: {len(answers)} lines to score")
    logps, tokens = completion_logps(opened, answers, config.dtype, "log-probs", reporter)
    reference_logps = None
    if config.reference is not None or reference is not None:
        other = reference or open_source(str(config.reference), config.data.chat_template)
        if other.chat.tokenizer.get_vocab() != opened.chat.tokenizer.get_vocab():
            raise UserError(
                f"reference {other.source}: its vocabulary is not that of {opened.source}, so it "
                "cannot score the same tokens; use a model with the same tokenizer"
            )
        reference_logps, _ = completion_logps(
            other, answers, config.dtype, "reference log-probs", reporter
        )
    chosen = tuple(generations[i] for i in kept) if generations else ()
    scored = Scored(tuple(answers.pairs), chosen, tokens, logps, reference_logps, config.beta)
    _write(scored, config, reporter)
    return scored


def read_answers(data: ScoredData) -> tuple[list[PreferencePair], list[Generation]]:
    """Reads the pairs of preference data, or the answers of a file of generations.

    Raises:
      UserError: If the data cannot be read, has bad lines, or holds nothing of the split.
    """
    generations: list[Generation] = []
    if isinstance(data.path, str) and _holds_generations(Path(data.path).expanduser()):
        generations = [g for g in read_generations(data.path) if data.split in (None, g.split)]
        # Lines are numbered from 1, as editors and error messages count them.
        pairs = [_answered(each, f"{data.path}:{i}") for i, each in enumerate(generations, 1)]
    else:
        found = list(Reading(data.weights(), data, data.single))
        handle_bad_lines([each for each in found if isinstance(each, BadLine)], data, None)
        read = [each.pair for each in found if not isinstance(each, BadLine)]
        pairs = [each for each in read if data.split in (None, each.split)]
    if not pairs:
        of_split = f" of the {data.split} split" if data.split else ""
        raise UserError(f"{data.name()}: holds no answers{of_split}")
    return pairs, generations


def _holds_generations(path: Path) -> bool:
    """Tells whether the first line of a file is an answer, as `jaxdpo sample` writes it."""
    try:
        with open(path, encoding="utf-8") as file:
            first = json.loads(next(line for line in file if line.strip()))
    except (OSError, ValueError, StopIteration):
        return False
    return isinstance(first, dict) and {"id", "messages", "completion", "model"} <= first.keys()


def _answered(answer: Generation, where: str) -> PreferencePair:
    message: dict[str, Any] = {"role": "assistant", "content": answer.completion}
    if answer.tool_calls:
        message["tool_calls"] = list(answer.tool_calls)
    return PreferencePair(
        prompt=answer.messages,
        chosen=(message,),
        rejected=(),
        split=answer.split,
        tools=answer.tools,
        metadata={**answer.metadata, "model": answer.model, "sample": answer.sample},
        source=where,
    )


def tokenize(
    pairs: Sequence[PreferencePair], chat: Chat, max_length: int, reporter: Reporter
) -> tuple[_Answers, list[int]]:
    """Encodes the answers, and leaves out and counts those that cannot be scored.

    Args:
      pairs: The pairs.
      chat: Tokenizer and template of the model.
      max_length: Most tokens of a prompt and one completion.
      reporter: Shows the counts.

    Returns:
      The answers, and the index in `pairs` of each.

    Raises:
      UserError: If no answer is left.
    """
    tokenized, kept = [], []
    cut = refused = dropped = 0
    for start in range(0, len(pairs), _BATCH):
        some = pairs[start : start + _BATCH]
        for offset, encoded in enumerate(chat.encode_pairs(some)):
            if isinstance(encoded, BadPair):
                refused += 1
                reporter.say(f"{some[offset].source}: {encoded}")
                continue
            # As training truncates, so that a score is of the tokens that a run would learn from.
            truncated = truncate(some[offset], encoded.tokens, chat, max_length)
            if truncated.tokens is None:
                dropped += 1
                continue
            cut += truncated.outcome != "whole"
            tokenized.append(truncated.tokens)
            kept.append(start + offset)
    if refused:
        reporter.say(f"left out, not as the chat template allows: {refused}")
    if dropped:
        reporter.say(f"left out, answers that leave {max_length} tokens no room: {dropped}")
    if cut:
        reporter.say(f"prompts cut to fit {max_length} tokens: {cut}; raise data.max_length")
    if not tokenized:
        raise UserError("no answer can be scored; see the counts")
    return _Answers(tokenized, [pairs[i] for i in kept]), kept


def completion_logps(
    policy: Policy, answers: _Answers, dtype: str | None, what: str, reporter: Reporter
) -> tuple[np.ndarray, np.ndarray]:
    """Scores every answer under a model.

    Args:
      policy: The model.
      answers: The answers, N pairs.
      dtype: Of activations; None for float32 on CPU and bfloat16 elsewhere.
      what: Name of the progress bar.
      reporter: Shows progress.

    Returns:
      Log-probs summed over tokens, f32 `[N, 2]` in nats, and scored tokens, i32 `[N, 2]`.

    Raises:
      UserError: If a log-prob is not finite.
    """
    # Tiles run on every back end; on TPUs the kernel is faster. cuDNN's is not tried: it refuses
    # some models.
    platform = jax.default_backend()
    kind: AttentionKind = "splash" if platform == "tpu" else "tiles"
    used = dtype or ("float32" if platform == "cpu" else "bfloat16")
    mesh, batch = make_mesh(MeshConfig()), BatchConfig()
    lengths = answers.lengths()
    # A missing rejected answer keeps its zeros: it has no log-prob, and no tokens to divide by.
    logps = np.zeros((len(answers), 2), np.float32)
    tokens = np.zeros((len(answers), 2), np.int32)
    with jax.set_mesh(mesh):
        # Merged, so that a model and a reference of one shape share the compiled program.
        model = on_mesh(policy, mesh).merged()
        rows = batch.rows_per_device * batch_shards()
        row_length = choose_row_length(lengths, batch, rows)
        packer = Packer(lengths, batch, rows, row_length, longest_sequence(lengths))
        shape = scoring_shape([packer], LAYOUTS[kind])
        step = make_score_step(model.config, Compute(jnp.dtype(used), kind, "none"), mesh)
        planned = PlannedPairs(answers, packer, shape, PairColumns())
        found = score_pairs(step, model.params, None, planned, mesh)
        with reporter.counting(what, len(answers)) as counted:
            for indices, scores in counted(found):
                logps[indices], tokens[indices] = scores.plain_logps, scores.tokens
    # A NaN would sort to an end of every ranking and be taken for a verdict.
    bad = np.flatnonzero(~np.isfinite(logps).all(axis=1))
    if len(bad):
        raise UserError(
            f"{policy.source} gives {len(bad)} of {len(logps)} answers no finite log-prob, first "
            f"{answers.source(int(bad[0]))}; its weights hold NaN or infinity, or overflow in "
            f"{used}"
        )
    return logps, tokens


def _write(scored: Scored, config: ScoreConfig, reporter: Reporter) -> None:
    """Writes the files that the configuration names, and shows the tables."""
    try:
        with replacing(Path(config.out)) as file:
            for line in score_lines(scored):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        for table in tables(scored, config.group_by):
            reporter.table(table.title, table.header, list(table.rows))
        reporter.say(f"{config.out}: {len(scored.pairs)} lines")
        if config.best is not None:
            best = best_answers(scored)
            with replacing(Path(config.best)) as file:
                file.writelines(answer.line() for answer in best)
            reporter.say(f"{config.best}: the best answer to each of {len(best)} prompts")
        if config.write is not None and config.data.select is not None:
            selected, said = select_pairs(scored, config.data.select)
            write_pairs(selected, Path(config.write))
            reporter.say(f"{config.write}: {said}")
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from error
