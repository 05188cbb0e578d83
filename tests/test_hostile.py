"""Input that once slipped through or ended in a traceback: one clear error each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from moesim.cost.curves import Fan, Sheet
from moesim.cost.profile import Cell, load_profile
from moesim.errors import MoesimError, ProfileError, ScenarioError
from moesim.facts.catalog import load_device, load_model, locate, shipped
from moesim.facts.models import ModelSpec
from moesim.files import check_outputs, read_yaml
from moesim.requests import draw_requests
from moesim.scenario import load_scenario, scenario_from
from moesim.serving.metrics import summarise
from moesim.serving.records import Record, read_records, records_frame, write_records
from moesim.simulation.run import simulate
from moesim.traffic.traces import read_trace

ROOT = str(Path(__file__).parents[1])

HEADER = "arrival_s,prompt_tokens,output_tokens\n"


@pytest.fixture
def content() -> dict[str, Any]:
    return load_scenario("quickstart").to_content()


@pytest.fixture
def profile() -> dict[str, Any]:
    return dict(json.loads(shipped("profiles")["demo-cpu"].read_text()))


def cells(medians: dict[tuple[float, float], float]) -> list[Cell]:
    return [Cell(at=at, median_s=s, spread=0, repeats=1) for at, s in medians.items()]


def test_a_written_scenario_can_be_read_again() -> None:
    """Tables filled in from a workload stand in for the workload."""
    scenario = load_scenario("demo")
    assert scenario_from(scenario.to_content()).tenants == scenario.tenants


def test_relative_paths_survive_being_written(tmp_path: Path, content: dict[str, Any]) -> None:
    """What was relative to the scenario's folder is found from anywhere."""
    (tmp_path / "mine.json").write_text(shipped("profiles")["demo-cpu"].read_text())
    content["models"]["demo"]["profile"] = "mine.json"
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    written = load_scenario(tmp_path / "s.yaml").to_content()
    assert written["models"]["demo"]["profile"] == str((tmp_path / "mine.json").resolve())


def test_what_a_written_scenario_names_stays_what_it_is(
    tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A curve beside the scenario is found from anywhere; folders of a name change nothing."""
    (tmp_path / "curve.yaml").write_text("name: c")
    content["quality"] = {"curve": "curve.yaml"}
    content["hardware"]["device"] = "profiled"
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    for name in ("demo-cpu", "profiled"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    written = load_scenario("s.yaml").to_content()
    assert written["quality"]["curve"] == str(tmp_path / "curve.yaml")
    assert written["models"]["demo"]["profile"] == "demo-cpu"
    assert written["hardware"]["device"] == "profiled"


def test_an_alternative_called_as_the_scenarios_own(content: dict[str, Any]) -> None:
    content["alternatives"] = {"dedicated (the scenario's)": content["deployment"]}
    with pytest.raises(ScenarioError, match="names the scenario's own; choose another"):
        scenario_from(content)


@pytest.mark.parametrize(
    "text",
    [
        "a: 2001-13-45",
        "a: 0x_",
        "a: !!int x",
        "a: !!timestamp x",
        "[" * 3000,
        "a: 1\na: 2",
        "a: !!int ''",
        "a: !!float ''",
        "a: !!bool x",
        "a: 060",
        "a: 1:00",
    ],
)
def test_yaml_that_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(ScenarioError, match=r"s\.yaml: not valid YAML"):
        load_scenario(file)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe\xfa", b"a: 2001-13-45"])
def test_device_files_that_are_none(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "d.yaml"
    file.write_bytes(text)
    with pytest.raises(ScenarioError, match=r"d\.yaml: \w"):
        load_device(str(file))


def test_a_name_too_long_for_a_path() -> None:
    with pytest.raises(ScenarioError, match="neither a file nor"):
        locate("workloads", "x" * 300)


def test_the_folder_is_not_a_key(content: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match="folder: unknown key"):
        scenario_from(content | {"folder": "/x"})


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": "x"},
        {"rms_norm_eps": None},
        {"rms_norm_eps": float("nan")},
        {"num_attention_heads": 0},
        {"rope_parameters": [1]},
        {"rope_parameters": {"rope_theta": "a"}},
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"hidden_size": float("inf")},
        {"hidden_size": 4096.7},
        {"hidden_size": "big"},
        {"hidden_act": "gelu"},
        {"num_local_experts": None},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 10**400},
    ],
    ids=str,
)
def test_model_configurations(change: dict[str, Any]) -> None:
    config = json.loads(shipped("models")["demo-moe"].read_text())
    with pytest.raises(ScenarioError, match=rf"c\.json: {next(iter(change))[:4]}"):
        ModelSpec.from_config({**config, **change}, "c.json")


def damaged(profile: dict[str, Any], how: str) -> dict[str, Any]:
    head = profile["operations"]["head"]
    if how == "model":
        del profile["model"]["hidden_size"]
    elif how == "twice":
        head.append(head[-1])
    elif how == "infinite":
        head[0]["median_s"] = float("inf")
    elif how == "repeats":
        head[0]["repeats"] = 10**25
    elif how == "coordinate":
        head[0]["at"] = [-3]
    else:
        profile["router"]["popularity"][0][0] = 0.9
    return profile


@pytest.mark.parametrize(
    "how", ["model", "twice", "infinite", "coordinate", "popularity", "repeats"]
)
def test_profiles(profile: dict[str, Any], how: str, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps(damaged(profile, how)))
    with pytest.raises(ProfileError, match=r"p\.json: "):
        load_profile(file)


def test_a_fan_through_zero_context() -> None:
    """A row that a line fits best below zero at zero context stays finite."""
    fan = Fan.through(cells({(1.0, 0.0): 0.0, (1.0, 10.0): 0.0, (1.0, 50.0): 1.0}))
    assert np.isfinite(fan(1, 5))


def test_a_sheet_drawn_out_in_both_directions() -> None:
    """Beyond the last row and column durations still rise and are not negative."""
    corners = {(1.0, 0.0): 0.0, (1.0, 1.0): 10.0, (2.0, 0.0): 10.0, (2.0, 1.0): 10.0}
    sheet = Sheet.through(cells(corners))
    assert 0 <= sheet(1, 10) <= sheet(2, 10) <= sheet(4, 10)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("\n0,1,1\n1,x,1\n", "line 4: prompt_tokens: 'x'"),
        ("0,10,5,7\n1,11,6,8\n", "more fields than the header"),
    ],
)
def test_traces(tmp_path: Path, rows: str, message: str) -> None:
    """Blank lines count as lines; a row too long is not shifted silently."""
    file = tmp_path / "t.csv"
    file.write_text(HEADER + rows)
    with pytest.raises(ScenarioError, match=message):
        read_trace(file)


def test_trailing_blank_lines_are_nothing(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(HEADER + "0,10,5\n1,11,6\n\n\n")
    assert len(read_trace(file)) == 2


@pytest.mark.parametrize(
    "lengths",
    [
        {"kind": "fixed", "tokens": 10**30},
        {"kind": "lognormal", "mean": 1e19, "cv": 1},
        {"kind": "quantiles", "levels": [0, 1], "tokens": [0, 3], "scale": float("inf")},
        {"kind": "quantiles", "levels": [0, 0.5, 1], "tokens": [1, float("nan"), 3]},
        {"kind": "quantiles", "levels": [0, 0.5, 1], "tokens": [1, float("inf"), float("inf")]},
    ],
    ids=str,
)
def test_lengths(content: dict[str, Any], lengths: dict[str, Any]) -> None:
    content["tenants"]["chat"]["prompt_tokens"] = lengths
    with pytest.raises(ScenarioError, match=r"tenants\.chat\.prompt_tokens"):
        scenario_from(content)


def test_a_negative_seed(content: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match="seed: -1"):
        simulate(scenario_from(content), seed=-1)


def test_a_profile_for_nobody(content: dict[str, Any]) -> None:
    with pytest.raises(ProfileError, match="'typo', which is not one of the scenario's models"):
        simulate(scenario_from(content), {"typo": load_profile("demo-cpu")})


def test_a_tenant_called_na(tmp_path: Path) -> None:
    """CSV keeps a tenant's name whatever it is, and an empty detail empty."""
    record = Record(request_id=0, tenant="NA", model="m", replica="m/0", arrival_s=0.1)
    frame = records_frame([record])
    write_records(frame, tmp_path / "r.csv")
    again = read_records(tmp_path / "r.csv")
    pd.testing.assert_frame_equal(again, frame, check_dtype=False)
    assert "NA" in summarise(again)["tenants"]


def test_writing_onto_a_folder(tmp_path: Path) -> None:
    (tmp_path / "r.csv").mkdir()
    with pytest.raises(MoesimError, match=r"r\.csv: is a folder"):
        write_records(records_frame([]), tmp_path / "r.csv")


def test_places_are_checked_before_the_work(tmp_path: Path) -> None:
    """Folders, inputs, one file twice, no folder at all; nothing is left behind."""
    taken = tmp_path / "s.yaml"
    taken.write_text("name: x")
    for outputs, message in (
        ({"--report": tmp_path}, "is a folder"),
        ({"--out": taken}, "--out: .* is read as input"),
        ({"--series": tmp_path / "a", "--timeline": tmp_path / "." / "a"}, "--series writes that"),
        ({"--plot": taken / "a.html"}, "cannot be written"),
        ({"--plot": tmp_path / ("x" * 300)}, "cannot be written"),
        ({"--plot": tmp_path / "\udcff"}, "the name is not UTF-8"),
    ):
        with pytest.raises(ScenarioError, match=message):
            check_outputs(outputs, [taken])
    check_outputs({"--out": tmp_path / "new" / "a", "--plot": None}, [taken])
    assert list(tmp_path.iterdir()) == [taken]


def test_merges_of_merges_end(tmp_path: Path) -> None:
    """Each level would be ten times the one before."""
    levels = ["a0: &a0 {x: 1, y: 2}"]
    levels += [f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (tmp_path / "s.yaml").write_text("\n".join(levels))
    with pytest.raises(ScenarioError, match="merges add up to more than 10000 keys"):
        load_scenario(tmp_path / "s.yaml")


def test_merges_are_read(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("a: &a {x: 10}\nb: {<<: *a, y: 0x10}\n")
    assert read_yaml(tmp_path / "s.yaml")["b"] == {"x": 10, "y": 16}


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "\ufeff{}"])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    """Depth without end and numbers without end, in either kind of file."""
    file = tmp_path / "f.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ProfileError, match=r"f\.json: broken"):
        load_profile(file)
    with pytest.raises(ScenarioError, match=r"f\.json: not readable as JSON"):
        load_model(str(file))


def test_half_a_character_in_a_trace(tmp_path: Path) -> None:
    """A whole pair is one character."""
    file = tmp_path / "t.jsonl"
    row = '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 5, "tenant": "%s"}\n'
    file.write_text(row % "\\ud83d\\ude00" + row % "\\ud800")
    with pytest.raises(ScenarioError, match=r"line 2: .* half of a character"):
        read_trace(file)
    file.write_text(row % "\\ud83d\\ude00")
    assert len(read_trace(file)) == 1


def test_text_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    """Written and read where the locale knows ASCII alone."""
    code = (
        "from pathlib import Path; from moesim.files import read_yaml, write_text\n"
        "write_text(Path('a.yaml'), 'a: \\u00d7'); assert read_yaml(Path('a.yaml'))['a'] == '\\xd7'"
    )
    settings = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": ROOT}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=settings, check=True)


@pytest.mark.parametrize(
    ("device", "change"),
    [
        ("cpu-2core", {"memory_bandwidth_bytes_per_s": 1e-300}),
        ("cpu-2core", {"bf16_flop_per_s": 1e300}),
        ("cpu-2core", {"memory_bytes": 10**400}),
    ],
    ids=str,
)
def test_devices_beyond_numbers(device: str, change: dict[str, Any], tmp_path: Path) -> None:
    content = yaml.safe_load(shipped("hardware")[device].read_text())
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(content | change))
    with pytest.raises(ScenarioError, match=rf"d\.yaml: {next(iter(change))}: "):
        load_device(str(tmp_path / "d.yaml"))


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        ({"kind": "on-off", "on_rate_per_s": 0.1, "on_s": 1e-3, "off_s": 1e-3}, "changes about"),
        ({"kind": "diurnal", "rates_per_s": [0.1] * 1000, "period_s": 1}, "changes about"),
        ({"kind": "gamma", "rate_per_s": 1e-322, "cv": 3}, "must be at least 1e-12"),
    ],
    ids=str,
)
def test_arrivals_beyond_memory(
    content: dict[str, Any], arrivals: dict[str, Any], message: str
) -> None:
    content["tenants"]["chat"]["arrivals"] = arrivals
    content["duration_s"] = 1e7
    with pytest.raises(ScenarioError, match=message):
        draw_requests(scenario_from(content), 0)


def test_blocks_beyond_numbers(content: dict[str, Any]) -> None:
    content["deployment"]["kv_blocks"] = 10**400
    with pytest.raises(ScenarioError, match=r"deployment\.kv_blocks: "):
        scenario_from(content)
