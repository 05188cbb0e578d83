"""The rules of serving, shared by the engine (on tensors) and the simulator (on durations).

Plain Python on plain state: no clock, no tensor, no event loop.
"""
