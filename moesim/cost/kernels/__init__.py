"""Kernel tables: how long one device takes for single kernels, whatever model they are of.

`tables` is the file. `aiconfigurator`, `vidur` and `llmservingsim` read what others measured,
`importing` makes a file of it, `validation` judges its curves. `gemm`, `attention`, `experts`,
`exchanges` and `elementwise` answer for shapes and sizes that it has not; `operations` adds kernels
up, and `assembling` makes a model's profile of them.
"""
