"""Switch Transformers: an encoder, and a decoder that attends to it, with experts in both.

Read in order: `config`, `step` (what enters a forward pass), `positions` and `attention`, `router`
and `feed_forward`, `encoder`, `decoder`, `model` (the forward pass), `layout` and `checkpoint`
(weights from and to disk). After Fedus et al. 2022 (arXiv:2101.03961) on T5 (arXiv:1910.10683), as
Hugging Face transformers computes it.

Shapes: P prompt tokens that are encoded in the step, T decoder tokens of the step, S rows that
emit, H hidden size, N heads, D head size, E experts, I intermediate size, V vocabulary, L decoder
layers, B buckets of relative positions.
"""
