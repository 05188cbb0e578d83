"""The quality experiment: what consolidation costs small models that are trained here and now.

Read in order: `corpus` (four domains of text that are on every host), `forward` (the
engine's decoder with gradients), `balance`, `training`, `bits` (the metric), `family` (a base and
its variants), `made` (models made of several variants), `study` (what is compared), `results` (the
files that come out), `command`.

Shapes: B windows, W bytes a window, T = B * W tokens, V = 256 bytes, else as in `engine.model`.
"""
