"""The decoder: configuration, layers, attention, LoRA and cache; pure functions of arrays.

Local arrays are named by their axes, a letter each, so that `hidden_BTD` is `[B, T, D]`:

    B   rows of a batch, or sequences that are decoded together
    T   tokens of a row; as queries where S are keys
    S   keys, or slots of the cache, where they are not the queries' T
    D   channels of the residual stream ("model")
    H   query heads
    K   kv-heads; G = H / K query heads share each of them
    d   channels of a head; r are rotated, or r is the rank of an adapter
    F   channels between the projections of the MLP
    V   vocabulary
    L   layers
    E   experts
    N   items without a row: tokens of all rows, or sequences that are laid out one a row
    n   blocks of a row, of t tokens each; c tiles of such blocks

Parameters carry the same letters where they are local names (`a_LDr`); inside a nested dict their
path names them.
"""
