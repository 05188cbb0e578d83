"""What a file holds in a few figures, and how two files differ."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from moesim.cost.kernels.tables import FAMILIES, Kernels, is_kernels, kernels_from
from moesim.cost.profile import Profile, profile_from
from moesim.errors import ProfileError


def facts_of(kernels: Kernels) -> dict[str, Any]:
    """Return a file of kernels without its points: how many there are, and all else."""
    counts: dict[str, dict[str, Any]] = {
        family: {
            "curves": len(getattr(kernels, family)),
            "points": sum(len(curve.us) for curve in getattr(kernels, family)),
        }
        for family in FAMILIES
    }
    counts["gemm"]["forms"] = kernels.products
    content = kernels.model_dump(mode="json", exclude={*FAMILIES, "products"})
    return {**content, "families": counts, "formats": formats_of(kernels)}


def formats_of(kernels: Kernels) -> dict[str, list[str]]:
    """Return the formats of products, experts and KV cache."""
    return {
        "gemm": sorted({curve.format for curve in kernels.gemm}),
        "moe": sorted({curve.format for curve in kernels.moe}),
        "kv": sorted({curve.kv_format for curve in (*kernels.prefill, *kernels.decode)}),
    }


def profile_facts(profile: Profile) -> dict[str, Any]:
    """Return a profile without its points: how many there are, and all else."""
    content = profile.model_dump(mode="json", exclude={"operations", "router", "transfers"})
    operations = {
        name: {
            "cells": len(cells),
            "shortest_s": min(cell.median_s for cell in cells),
            "longest_s": max(cell.median_s for cell in cells),
            "basis": profile.rests_on(name),
        }
        for name, cells in profile.operations.items()
    }
    return {**content, "operations": operations}


class Difference(NamedTuple):
    """How the points of one curve that two files share differ, second over first."""

    family: str
    curve: str
    points: int
    median_ratio: float
    least_ratio: float
    largest_ratio: float


def compared(first: Any, second: Any, name: str, other: str) -> list[Difference]:
    """Compare the contents of two files; ProfileError where they share nothing."""
    if is_kernels(first) != is_kernels(second):
        raise ProfileError(f"{other}: format: not of the kind of {name}; compare two of one kind")
    if is_kernels(first):
        points = [_of_kernels(kernels_from(first, name)), _of_kernels(kernels_from(second, other))]
    else:
        points = [_of_profile(profile_from(first, name)), _of_profile(profile_from(second, other))]
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    for key, seconds in points[0].items():
        if seconds and key in points[1]:
            ratios[key[:2]].append(points[1][key] / seconds)
    if not ratios:
        raise ProfileError(f"{other}: no point in common with {name}; compare others")
    return [_difference(*key, values) for key, values in ratios.items()]


def _difference(family: str, curve: str, ratios: list[float]) -> Difference:
    median, least, largest = np.quantile(ratios, [0.5, 0.0, 1.0]).round(4).tolist()
    return Difference(family, curve, len(ratios), median, least, largest)


Points = dict[tuple[str, str, tuple[float, ...]], float]
"""Family, curve, sizes: the duration."""


def _of_kernels(kernels: Kernels) -> Points:
    return {
        (family, label, sizes): us
        for family in FAMILIES
        for curve in getattr(kernels, family)
        for label, sizes, us in points_of(curve)
    }


def points_of(curve: Any) -> Iterator[tuple[str, tuple[float, ...], float]]:
    """Yield a curve's label, the sizes of each point and its duration [us]."""
    content = {name: getattr(curve, name) for name in type(curve).model_fields}
    lists = {name: value for name, value in content.items() if isinstance(value, tuple)}
    us = lists.pop("us")
    label = " ".join(
        f"{name} {value}" for name, value in content.items() if not isinstance(value, tuple | None)
    )
    for place, duration in enumerate(us):
        yield label, tuple(float(values[place]) for values in lists.values()), duration


def _of_profile(profile: Profile) -> Points:
    return {
        ("operations", name, cell.at): cell.median_s
        for name, cells in profile.operations.items()
        for cell in cells
    }
