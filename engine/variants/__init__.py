"""Variants: checkpoints of one shape, served together or made into one.

Consolidation (Imani et al., ICML 2025, arXiv:2505.06481), read in order: `positions` (where experts
are), `stored` (experts in checkpoint files), `distances`, `layout` (whose copy serves whom, and its
file), `command` (the steps behind `moesim-engine consolidate`), `assemble` (a variant as a layout
makes it); `merging` has the methods that it is compared with.

Serving them: `copies` (which experts there are), `caches` (which of them stay), `links` (streams of
copies), `host` (pinned memory), `store` (experts on demand), `arena` and `reconfigure` (non-expert
sets), `skeleton` and `family` (models whose weights come and go), `seat`, `serving` (engines in
turns), `worker` and `hosting` (behind the server).
"""
