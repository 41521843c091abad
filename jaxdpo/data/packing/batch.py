"""The packed, prefix-shared batch: what one microbatch of preference pairs looks like on a device.

A row of T tokens holds several pairs. A pair is laid out once as `[prompt | chosen | rejected]`:

    token      p0 p1 p2 | c0 c1 | r0 r1 r2 | pad
    position    0  1  2 |  3  4 |  3  4  5 |  0
    pair_id     1  1  1 |  1  1 |  1  1  1 |  0
    branch      0  0  0 |  1  1 |  2  2  2 |  0
    end         8  8  8 |  5  5 |  8  8  8 |  9

Query i sees key j iff they have the same pair id, j ≤ i, and branch j is 0 or branch i. That one
sentence is the whole attention mask, padding included (pair 0 sees only itself). So r1 sees

    p0 p1 p2 |  ·  · | r0 r1 |

at positions 0 to 4, exactly as if `[prompt | rejected]` stood alone in a row: the shared layout
changes the cost of a pair, and not its log-probs.

Devices compute the mask from one number a key: query i sees key j iff j ≤ i < end[j]. A prompt's
tokens are seen until their pair ends, a completion's until the completion ends, padding's until the
row does. All other tokens lie before j or from end[j] on, so the two sentences say the same.

A token is predicted by the hidden state of the token before it in its own sequence. For the layout
above these are the scored tokens of the row, five of them:

    score_target  c0 c1 | r0 r1 r2      the token that is predicted
    score_index    2  3 |  2  5  6      the place in the row whose hidden state predicts it
    score_branch   1  1 |  2  2  2      the completion that its log-prob belongs to

The prompt's last token, at place 2, predicts the first token of both completions: its hidden state
is scored twice, and no token is laid out twice. Prompt tokens are not scored.
"""

from typing import Any, NamedTuple

import numpy as np

# numpy.ndarray on the host, jax.Array on a device.
Array = Any

# The values of `branches`. That the prompt's is 0 is part of the mask's sentence.
PROMPT, CHOSEN, REJECTED = 0, 1, 2

# Tokens of a block. Attention goes over a row in tiles of TILE queries by TILE keys, and leaves out
# the tiles in which no query sees a key. Smaller tiles would leave out more, and would be too small
# for a matrix unit to be busy.
TILE = 64


class PackedBatch(NamedTuple):
    """One microbatch: R rows of T tokens with at most P pairs and S scored tokens a row.

    Rows, tokens, pairs and scored tokens that a microbatch does not need are padding, so that all
    microbatches of a run have one shape and share one compiled program. All arrays are i32. Leading
    axes may be added (microbatches of a step are stacked).

    Attributes:
      tokens: `[R, T]`, 0 where padding.
      positions: `[R, T]`, restarting at each pair, and after the prompt for each completion.
      pair_ids: `[R, T]`, 1..P within the row; 0 is padding.
      branches: `[R, T]`, PROMPT, CHOSEN or REJECTED.
      end: `[R, T]`, the place behind the last token that sees this one.
      score_index: `[R, S]`, which token's hidden state predicts the scored token.
      score_target: `[R, S]`, the scored token.
      score_pair: `[R, S]`, its pair id; 0 where unused.
      score_branch: `[R, S]`, CHOSEN or REJECTED; 0 where unused.
      pair_index: `[R, P]`, the pair's row in the data set; -1 where there is no pair.
      tiles: `[R, N, 2]`, which blocks of `TILE` tokens (first number) see something of which
        (second); the number of blocks where unused. N is 0 unless the attention asks for it.
      gather: How to lay the row out as ordinary causal sequences, for attention kernels; empty
        unless the attention asks for it.
    """

    tokens: Array
    positions: Array
    pair_ids: Array
    branches: Array
    end: Array
    score_index: Array
    score_target: Array
    score_pair: Array
    score_branch: Array
    pair_index: Array
    tiles: Array
    gather: "SequenceGather"


class SequenceGather(NamedTuple):
    """A row's tokens as A attention rows of W tokens, each of whole `[prompt, completion]`s.

    A prompt's tokens stand twice, once before each completion, so that plain causal attention
    within segments gives what the prefix-sharing mask gives on the shared layout.

    Attributes:
      index: i32 `[R, A, W]`, position in the row of the token; 0 where padding.
      segment: i32 `[R, A, W]`, 1.. for each sequence of the attention row; 0 is padding.
      inverse: i32 `[R, T]`, index into the flattened `[A * W]` where each token's output stands
        (of a prompt token: the copy before the chosen completion; of padding: any).
    """

    index: Array
    segment: Array
    inverse: Array


def sharing_mask(pair_ids: np.ndarray, branches: np.ndarray) -> np.ndarray:
    """Returns the attention mask, bool `[..., T (query), T (key)]`, by its defining sentence.

    No model computes with it, because it is quadratic in the row's length: it is what `end` and
    every attention implementation are tested against.
    """
    length = pair_ids.shape[-1]
    # Axis -2 is the query i, axis -1 the key j.
    same_pair = pair_ids[..., :, None] == pair_ids[..., None, :]
    causal = np.arange(length)[:, None] >= np.arange(length)
    key_branch = branches[..., None, :]
    visible = (key_branch == PROMPT) | (key_branch == branches[..., :, None])
    return same_pair & causal & visible
