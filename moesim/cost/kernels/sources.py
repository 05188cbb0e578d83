"""Where AIConfigurator's tables are: in the user's own installation, or in a folder.

The package `aiconfigurator-core` holds `systems/data/SYSTEM/FAMILY/FRAMEWORK/VERSION/*.parquet`. A
folder may be such a `data`, or hold parquet files of several of these one after the other, told
apart by the columns `gpu` and `file` (the path within `data`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import pandas as pd

from moesim.cost.kernels.frames import numbers, read_table
from moesim.errors import ProfileError

PACKAGE = "aiconfigurator-core"

DEVICES = {
    "a100_sxm": "a100-sxm-80gb",
    "h100_sxm": "h100-sxm-80gb",
    "h200_sxm": "h200-sxm-141gb",
    "l40s": "l40s-48gb",
}
"""Shipped devices by the name that the tables give the system."""

FAMILIES = {
    "gemm": ("gemm", "gemm_perf.parquet", ("gemm_dtype", "m", "n", "k", "latency")),
    "prefill": (
        "attention",
        "context_attention_perf.parquet",
        ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "latency"),
    ),
    "decode": (
        "attention",
        "generation_attention_perf.parquet",
        ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "step", "latency"),
    ),
    "moe": (
        "moe",
        "moe_perf.parquet",
        ("moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts",
         "moe_tp_size", "moe_ep_size", "distribution", "latency"),
    ),
    "collectives": (
        "comm",
        "custom_allreduce_perf.parquet",
        ("num_gpus", "message_size", "latency"),
    ),
}  # fmt: skip
"""By family of kernels: the folder, the file, and the columns that are needed."""

TEXT = {"gemm_dtype", "moe_dtype", "distribution"}
"""The columns that are no numbers."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the tables of one system and framework are."""

    folder: Path
    system: str
    backend: str
    joined: bool
    """Whether the folder holds files of several tables one after the other."""

    @classmethod
    def at(cls, folder: Path | None, system: str, backend: str) -> "Source":
        """Find the tables; ProfileError, with what there is, where there are none."""
        root = _installed() if folder is None else folder
        if not root.is_dir():
            raise ProfileError(f"{root}: no such folder; give the folder of the tables")
        for data in (root, root / "data", root / "systems" / "data"):
            if (data / system).is_dir():
                return cls(data, system, backend, joined=False)
        if sorted(root.glob("*.parquet")):
            return cls(root, system, backend, joined=True)
        there = sorted(p.name for p in (root / "systems" / "data").glob("*") if p.is_dir())
        raise ProfileError(
            f"{root}: no tables of the system {system!r}; "
            f"{'there are ' + ', '.join(there) if there else 'no parquet file in it'}"
        )

    def others(self) -> list["Source"]:
        """Return the tables of other frameworks on the same system, by name; a folder's alone."""
        if self.joined:
            return []
        folders = {folder for folder, _, _ in FAMILIES.values()}
        beside = [path for name in folders for path in (self.folder / self.system / name).glob("*")]
        names = sorted({path.name for path in beside if path.is_dir()} - {self.backend})
        return [replace(self, backend=name) for name in names]

    def versions(self, family: str) -> list[str]:
        """Return the versions of a family's table, oldest first."""
        folder, name, _ = FAMILIES[family]
        if self.joined:
            found = {Path(file).parts[-2] for file in self._files(folder, name)}
        else:
            tables = (self.folder / self.system / folder / self.backend).glob(f"*/{name}")
            found = {path.parent.name for path in tables}
        return sorted(found, key=version_key)

    def newest(self) -> str:
        """Return the newest version with products, attention and experts."""
        needed = [set(self.versions(name)) for name in FAMILIES if name != "collectives"]
        both = sorted(set.intersection(*needed), key=version_key)
        if not both:
            raise ProfileError(
                f"{self.folder}: no version of {self.backend} has gemm, attention and moe of "
                f"{self.system}; gemm has {', '.join(self.versions('gemm')) or 'none'}"
                f"{self._beside()}"
            )
        return both[-1]

    def _beside(self) -> str:
        """Name the frameworks that have tables, where this one has none."""
        if self.versions("gemm"):
            return ""
        others = [other.backend for other in self.others() if other.versions("gemm")]
        return f"; --backend may be {' or '.join(others)}" if others else ""

    def wanted(self, version: str) -> str:
        """Return a version that has products; ProfileError with those there are."""
        known = self.versions("gemm")
        if version not in known:
            raise ProfileError(
                f"--version: {version}: {self.backend} has no tables of it for {self.system}; "
                f"it has {', '.join(known) or 'none'}{self._beside()}"
            )
        return version

    def table(self, family: str, version: str) -> tuple[pd.DataFrame, str]:
        """Return a table with numbers as numbers, and the name of its file."""
        folder, name, columns = FAMILIES[family]
        path = f"{self.system}/{folder}/{self.backend}/{version}/{name}"
        if self.joined:
            frame, file = self._joined(columns, path)
        else:
            frame, file = read_table(self.folder / path, columns), str(self.folder / path)
        numeric = [column for column in columns if column not in TEXT]
        return numbers(frame, numeric, file), path

    def _joined(self, columns: Sequence[str], path: str) -> tuple[pd.DataFrame, str]:
        for file in sorted(self.folder.glob("*.parquet")):
            frame = read_table(file, ["file"])
            rows = frame[frame["file"] == path]
            if len(rows):
                missing = [name for name in columns if name not in rows]
                if missing:
                    raise ProfileError(f"{file}: no column {missing[0]}; fetch it again")
                return rows, str(file)
        raise ProfileError(f"{self.folder}: no rows of {path}; another --version or --backend?")

    def _files(self, folder: str, name: str) -> Iterator[str]:
        wanted = f"{self.system}/{folder}/{self.backend}/"
        for file in sorted(self.folder.glob("*.parquet")):
            frame = read_table(file, ["file"])
            for found in frame["file"].unique():
                if str(found).startswith(wanted) and str(found).endswith(name):
                    yield str(found)


def _installed() -> Path:
    """Return the data folder of the installed package; ProfileError where there is none."""
    try:
        return Path(str(resources.files("aiconfigurator_core"))) / "systems" / "data"
    except ModuleNotFoundError:
        raise ProfileError(
            f"{PACKAGE} is not installed; pip install 'moesim[import]', or give --from FOLDER"
        ) from None


def version_key(version: str) -> tuple[float, ...]:
    """Order versions; a release comes after its candidates.

    >>> sorted(["1.3.0", "1.3.0rc20", "1.3.0rc5"], key=version_key)
    ['1.3.0rc5', '1.3.0rc20', '1.3.0']
    """
    parts = re.findall(r"\d+|rc", version)
    key = [-1.0 if part == "rc" else float(part) for part in parts]
    return (*key, 0.0)
