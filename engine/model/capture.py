"""Capturing what is launched on a CUDA device as a graph."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, pool: Any = None) -> Iterator[None]:
    """Capture into `graph`, on the caller's stream if that is one of its own.

    So what a share of the device launches is captured on that share. Python collects no garbage
    meanwhile: pinned memory that is let go of waits for the device, which would spoil the capture.
    """
    stream = torch.cuda.current_stream()
    own = None if stream == torch.cuda.default_stream() else stream  # which captures nothing
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=own):
            yield
    finally:
        if collecting:
            gc.enable()
