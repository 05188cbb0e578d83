"""How the experts of a layer are run: styles of one signature, and which is used when.

Read in order: `loop` (the reference), `dense`, `grouped`, `fused` with its `kernels` (styles),
`styles` (what each needs), `choice` (a style for each number of tokens), `choosing` (what is
fastest here).

Every style is a function of tokens x (T, H), their experts' weights (T, k) in float32 and ids
(T, k), and the layer's gate_up (E, 2 I, H) and down (E, H, I). It returns the weighted sum (T, H)
of each token's experts, each of them down @ (silu(gate @ x) * (up @ x)), where gate_up holds gate
above up. A visit is one token at one of its experts; there are V = T * k of them.
"""
