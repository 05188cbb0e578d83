"""Shares of a device's compute: several engines at once, each on cores or SMs of its own.

A share divides what computes and nothing else: memory, its bandwidth and the last cache stay
everybody's, as under CUDA MPS. So it is an honest stand-in for a MIG instance as far as compute
goes, on hosts whose MIG mode may not be touched, and no stand-in for the walls in memory.

| device | a share is | an engine runs |
|---|---|---|
| CPU | cores | in a process that is confined to them |
| CUDA | SMs of a green context | in a thread, on a stream of that context |
"""
