"""Merging profiles: pooled against samples and closed forms, refused where not comparable."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from calibration.cli import app
from calibration.merge import merge
from calibration.merge_cells import pooled
from moesim.cost.profile import Cell, Profile, load_profile
from moesim.errors import CalibrationError

Content = Callable[[], dict[str, Any]]

TRANSFERS = {
    "expert_loads": [
        {
            "memory": "pinned",
            "how": "alone",
            "expert_bytes": 4096,
            "in_flight": 1,
            "median_s": 0.002,
            "spread": 0.1,
            "repeats": 5,
        }
    ],
    "swaps": [
        {
            "what": "whole_model",
            "way": "packed",
            "memory": "pinned",
            "set_bytes": 4096,
            "tensors": 3,
            "median_s": 0.01,
            "spread": 0.1,
            "repeats": 5,
        }
    ],
    "notes": ["pageable copies were not measured"],
}


def _cell(median_s: float, spread: float, repeats: int) -> Cell:
    return Cell(at=(1,), median_s=median_s, spread=spread, repeats=repeats)


def _slower(content: dict[str, Any], factor: float) -> dict[str, Any]:
    """Return another repetition, on a day on which all took `factor` times as long."""
    for cells in content["operations"].values():
        for cell in cells:
            cell["median_s"] *= factor
    content["provenance"]["date"] = "2026-11-22T00:00:00+00:00"
    return content


def _merged(*contents: dict[str, Any]) -> Profile:
    names = ("a.json", "b.json", "c.json")
    profiles = [Profile.model_validate(content) for content in contents]
    return merge(list(zip(names, profiles, strict=False)))


def test_equal_medians_pool_to_themselves() -> None:
    """Only the repeats grow."""
    assert pooled([_cell(2.0, 0.1, 5), _cell(2.0, 0.1, 7)]) == _cell(2.0, 0.1, 12)


def test_disagreement_widens_the_spread() -> None:
    """Two points at 1 and 3: mean 2, deviation 1, interquartile range 1.349 of a normal."""
    cell = pooled([_cell(1.0, 0.0, 4), _cell(3.0, 0.0, 4)])
    assert (cell.median_s, cell.repeats) == (2.0, 8)
    assert cell.spread == pytest.approx(1.349 / 2, abs=1e-4)


def test_pooling_agrees_with_the_samples() -> None:
    """Normal samples in three parts: median and interquartile range of all of them together."""
    samples = np.random.default_rng(0).normal(10.0, 1.0, 9000)
    cells = []
    for part in np.split(samples, [1000, 4000]):
        low, median, high = np.percentile(part, [25, 50, 75])
        cells.append(_cell(median, (high - low) / median, len(part)))
    low, median, high = np.percentile(samples, [25, 50, 75])
    cell = pooled(cells)
    assert cell.repeats == len(samples)
    assert cell.median_s == pytest.approx(median, rel=2e-3)
    assert cell.spread == pytest.approx((high - low) / median, rel=2e-2)


def test_repetitions_are_pooled(tiny_content: Content) -> None:
    """Every cell of two profiles that are 10 % apart lies half-way, with the repeats of both."""
    one = tiny_content()
    merged = _merged(one, _slower(tiny_content(), 1.1))
    assert {name: len(cells) for name, cells in merged.operations.items()} == {
        name: len(cells) for name, cells in one["operations"].items()
    }
    for name, cells in merged.operations.items():
        for cell, old in zip(cells, one["operations"][name], strict=True):
            assert cell.at == tuple(old["at"])
            assert cell.median_s == pytest.approx(1.05 * old["median_s"])
            assert cell.repeats == 18
    assert merged.verdict.drift == pytest.approx(0.1)
    assert merged.verdict.stable
    assert merged.router.tokens == 200
    assert merged.router.distinct == [(1, 2.0)]
    assert merged.provenance.duration_s == 2.0
    assert merged.provenance.date == "2026-11-22T00:00:00+00:00"
    assert merged.verdict.warnings == [
        "pooled from 2 profiles of 2026-11-21T00:00:00+00:00, 2026-11-22T00:00:00+00:00"
    ]


def test_cells_that_only_one_has_are_kept(tiny_content: Content) -> None:
    """A larger grid and an operation that is optional join what is there."""
    other = _slower(tiny_content(), 1.05)
    other["operations"]["head"].append(
        {"at": [8], "median_s": 0.04, "spread": 0.1, "repeats": 3},
    )
    other["operations"]["collectives"] = [
        {"at": [1], "median_s": 1e-5, "spread": 0.1, "repeats": 3},
    ]
    merged = _merged(tiny_content(), other)
    assert [cell.at for cell in merged.operations["head"]] == [(1,), (64,), (8,)]
    assert merged.operations["head"][2].repeats == 3
    assert len(merged.operations["collectives"]) == 1


def test_the_router_is_the_mean_by_tokens(tiny_content: Content) -> None:
    """300 tokens weigh three times as much as 100."""
    other = _slower(tiny_content(), 1.05)
    other["router"] = {"popularity": [[0.9, 0.5, 0.5, 0.1]] * 2, "tokens": 300, "distinct": []}
    merged = _merged(tiny_content(), other)
    assert merged.router.popularity == [pytest.approx([0.8, 0.5, 0.5, 0.2])] * 2
    assert merged.router.tokens == 400


def test_hosts_that_changed_are_not_stable(tiny_content: Content) -> None:
    """Days that are 50 % apart are pooled, and not trusted."""
    merged = _merged(tiny_content(), _slower(tiny_content(), 1.2), _slower(tiny_content(), 1.5))
    assert not merged.verdict.stable
    assert merged.verdict.drift == pytest.approx(0.5)
    assert merged.verdict.warnings[-1].endswith("drift 50 %: the host was not alike")


def test_residuals_are_joined(tiny_content: Content) -> None:
    """Errors are percentiles of |predicted/measured - 1| over all of them."""
    one, other = tiny_content(), _slower(tiny_content(), 1.05)
    one["verdict"]["iteration_residuals"] = [0.25]
    other["verdict"]["iteration_residuals"] = [1.0, 0.0]
    verdict = _merged(one, other).verdict
    assert verdict.iteration_residuals == [0.25, 1.0, 0.0]
    assert verdict.iteration_error_p50 == pytest.approx(0.2)


def test_transfers_are_pooled(tiny_content: Content) -> None:
    """Loads and swaps like cells; what one profile did not measure is the other's."""
    one, other, without = tiny_content(), tiny_content(), tiny_content()
    one["transfers"] = json.loads(json.dumps(TRANSFERS))
    other["transfers"] = json.loads(json.dumps(TRANSFERS))
    other["transfers"]["swaps"][0]["median_s"] = 0.02
    merged = _merged(one, _slower(other, 1.05), _slower(without, 1.1)).transfers
    assert merged is not None
    assert [load.repeats for load in merged.expert_loads] == [10]
    assert merged.swaps[0].median_s == pytest.approx(0.015)
    assert merged.notes == TRANSFERS["notes"]


def _variant(digest: str, tokens: int) -> dict[str, Any]:
    popularity = [[0.5] * 4] * 2
    return {
        "model_digest": digest,
        "router": {"popularity": popularity, "tokens": tokens, "distinct": []},
    }


def test_variants_are_pooled_by_name(tiny_content: Content) -> None:
    """Those of one name are the same checkpoint, or the merge is refused."""
    one, other = tiny_content(), _slower(tiny_content(), 1.05)
    one["transfers"] = {"variants": {"chat": _variant("c", 100)}}
    other["transfers"] = {"variants": {"chat": _variant("c", 50), "code": _variant("d", 7)}}
    merged = _merged(one, other).transfers
    assert merged is not None
    assert {name: each.router.tokens for name, each in merged.variants.items()} == {
        "chat": 150,
        "code": 7,
    }
    other["transfers"]["variants"]["chat"]["model_digest"] = "e"
    expected = r"b\.json: transfers\.variants\.chat\.model_digest: 'e', and 'c' in a\.json"
    with pytest.raises(CalibrationError, match=expected):
        _merged(one, other)


def test_fewest_kv_blocks_are_kept(tiny_content: Content) -> None:
    """They follow the memory that is free."""
    other = _slower(tiny_content(), 1.05)
    other["kv"]["num_blocks"] = 12
    assert _merged(tiny_content(), other).kv.num_blocks == 12


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("provenance.model_digest", "f" * 16, f"'{'f' * 16}', and '{'0' * 16}'"),
        ("provenance.device", "NVIDIA H200", "'NVIDIA H200', and 'paper and pencil'"),
        ("provenance.device_kind", "cuda", "'cuda', and 'cpu'"),
        ("provenance.host_hash", "e" * 16, f"'{'e' * 16}', and '{'0' * 16}'"),
        ("provenance.device_hash", "d" * 16, f"'{'d' * 16}', and nothing in"),
        ("provenance.share", "1/2 cores", "'1/2 cores', and nothing"),
        ("provenance.software.moesim", "0.0.9", "'0.0.9', and '0.1.0'"),
        ("provenance.software.torch", "2.13.0", "'2.13.0', and nothing"),
        ("provenance.threads", 2, "2, and 1"),
        ("max_batched_tokens", 128, "128, and 64"),
        ("kv.block_size", 8, "8, and 4"),
        ("decode_graphs", [1, 2], "(1, 2), and ()"),
        ("precision", dict.fromkeys(("experts", "rest", "kv"), "fp8"), "{'experts': 'fp8', "),
        ("source", "scaled", "'scaled', and 'measured'"),
        ("model.rope_theta", 5e5, "500000.0, and "),
    ],
)
def test_what_is_not_comparable_is_refused(
    path: str, value: Any, line: str, tiny_content: Content
) -> None:
    """The line names file, field and both values."""
    other = _slower(tiny_content(), 1.05)
    *folders, key = path.split(".")
    place = other
    for folder in folders:
        place = place[folder]
    place[key] = value
    with pytest.raises(CalibrationError) as refused:
        _merged(tiny_content(), other)
    text = str(refused.value)
    assert text.startswith(f"b.json: {path}: {line}")
    assert text.endswith(" in a.json; merge only profiles that were made alike")


def test_two_gpus_of_one_host_are_not_comparable(tiny_content: Content) -> None:
    """Host and name are the same, the UUID is not."""
    one, other = tiny_content(), _slower(tiny_content(), 1.05)
    one["provenance"]["device_hash"] = other["provenance"]["device_hash"] = "d" * 16
    assert _merged(one, other).provenance.device_hash == "d" * 16
    other["provenance"]["device_hash"] = "e" * 16
    line = rf"^b\.json: provenance\.device_hash: '{'e' * 16}', and '{'d' * 16}' in a\.json; "
    with pytest.raises(CalibrationError, match=line):
        _merged(one, other)


def test_what_is_not_measured_is_refused(tiny_content: Content) -> None:
    """A datasheet does not become surer by being read twice."""
    one, other = tiny_content(), _slower(tiny_content(), 1.05)
    one["source"] = other["source"] = "roofline"
    with pytest.raises(CalibrationError, match=r"a\.json: source: 'roofline'; merge measured"):
        _merged(one, other)


def test_one_measurement_counts_once(tiny_content: Content) -> None:
    """A profile is no repetition of itself, and one alone is nothing to merge."""
    with pytest.raises(
        CalibrationError, match=r"c\.json: operations: the same measurement as in a\."
    ):
        _merged(tiny_content(), _slower(tiny_content(), 1.05), tiny_content())
    with pytest.raises(CalibrationError, match="give two profiles or more"):
        _merged(tiny_content())


def test_a_pooled_measurement_counts_once(tiny_content: Content) -> None:
    """A pooled profile, though its cells are others, is no repetition of what it was pooled of."""
    contents = [_slower(tiny_content(), factor) for factor in (1.0, 1.05, 1.1, 1.15)]
    one, two, three, four = (Profile.model_validate(content) for content in contents)
    pooled_two = Profile.model_validate_json(
        merge([("1.json", one), ("2.json", two)]).model_dump_json()
    )
    line = r"^1\.json: operations: the same measurement as in p\.json; give each measurement once$"
    with pytest.raises(CalibrationError, match=line):
        merge([("p.json", pooled_two), ("1.json", one)])
    with pytest.raises(
        CalibrationError, match=r"^q\.json: operations: the same measurement as in p"
    ):
        merge([("p.json", pooled_two), ("q.json", merge([("2.json", two), ("3.json", three)]))])
    others = merge([("3.json", three), ("4.json", four)])
    whole = merge([("p.json", pooled_two), ("r.json", others)])
    assert len(set(whole.provenance.pooled)) == 4
    assert whole.operations["host"][0].repeats == 36


def test_an_input_is_not_overwritten(tiny_content: Content, tmp_path: Path) -> None:
    """By whatever path the output is named."""
    a, b, link = (tmp_path / name for name in ("a.json", "b.json", "link.json"))
    a.write_text(json.dumps(tiny_content()))
    b.write_text(json.dumps(_slower(tiny_content(), 1.1)))
    link.symlink_to(b)
    before = b.read_bytes()
    refused = CliRunner().invoke(app, ["merge", str(a), str(b), "--out", str(link)])
    assert (refused.exit_code, b.read_bytes()) == (2, before)
    assert refused.stderr == (
        f"error: --out {link}: would replace {b}, one of the profiles; choose another file\n"
    )


def test_the_command_writes_a_profile(tiny_content: Content, tmp_path: Path) -> None:
    """Which loads again; files that differ end in one line, and nothing is written."""
    files = [tmp_path / name for name in ("a.json", "b.json", "other.json", "out.json")]
    one, two, other = tiny_content(), _slower(tiny_content(), 1.1), tiny_content()
    other["provenance"]["threads"] = 2
    for path, content in zip(files, (one, two, other), strict=False):
        path.write_text(json.dumps(content))
    a, b, different, out = map(str, files)
    refused = CliRunner().invoke(app, ["merge", a, different, "--out", out])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: {different}: provenance.threads: 2, and 1 in {a};")
    assert not files[-1].exists()
    done = CliRunner().invoke(app, ["merge", a, b, "--out", out])
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{out}: stable; 2 profiles, ")
    assert load_profile(out).operations["host"][0].repeats == 18
    verdict = json.loads(CliRunner().invoke(app, ["merge", a, b, "--out", out, "--json"]).stdout)
    assert verdict["drift"] == pytest.approx(0.1)
