"""The model: a decoder over a paged KV cache, with experts (Mixtral, Qwen3) or without (Llama).

Read in order: `step` (what enters a forward pass), `layers`, `attention`, `moe` and `dense` (with
experts and without), `decoder_layer`, `decoder` (the forward pass), `checkpoint` and `layout`
(weights from and to disk), `routing` and `stopwatch` (what calibration reads and forces).

Shapes: T tokens of the step, S rows that emit, H hidden size, N query heads, G key-value heads,
D head size, E experts, k experts a token, I intermediate size, V vocabulary, L layers.
"""
