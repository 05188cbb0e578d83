"""The model: a Mixtral-architecture decoder over a paged KV cache.

Read in order: `step` (what enters a forward pass), `layers`, `attention`, `moe`, `decoder` (the
forward pass), `checkpoint` (weights from and to disk), `routing` and `stopwatch` (what calibration
reads and forces).

Shapes: T tokens of the step, S rows that emit, H hidden size, N query heads, G key-value heads,
D head size, E experts, k experts a token, I intermediate size, V vocabulary, L layers.
"""
