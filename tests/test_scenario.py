"""Scenario files: what is wrong is named with its field, and nothing else ever comes out."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from moesim.errors import ScenarioError
from moesim.facts.catalog import shipped
from moesim.scenario import Scenario, TraceArrivals, load_scenario, load_workload, scenario_from
from moesim.serving.metrics import SloTargets
from moesim.simulation.run import simulate
from moesim.traffic.lengths import Quantiles

Content = Callable[[], dict[str, Any]]

GONE = object()


def _changed(content: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """Return the content with the value at `tenants.chat.model`, say, replaced or taken away."""
    content = copy.deepcopy(content)
    *path, last = dotted.split(".")
    node = content
    for key in path:
        node = node[key]
    if value is GONE:
        del node[last]
    else:
        node[last] = value
    return content


def _refusal(content: Any) -> str:
    with pytest.raises(ScenarioError) as caught:
        scenario_from(content, source="my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    return message.removeprefix("my.yaml: ")


def test_a_scenario_is_its_file(tiny_scenario: Content, tmp_path: Path) -> None:
    """Written as YAML and loaded, every value is where it was written."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny_scenario()))
    scenario = load_scenario(path)
    assert scenario == scenario_from(tiny_scenario(), folder=tmp_path)
    assert scenario.tenants["chat"].arrivals.kind == "poisson"
    assert scenario.deployment.scheduler.max_batched_tokens == 16


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("duration_s", 0, ["duration_s: 0", "greater than 0"]),
        ("duration_s", float("nan"), ["duration_s: nan"]),
        ("duration_s", "soon", ["duration_s: 'soon'", "number"]),
        ("name", GONE, ["name: missing"]),
        ("hardware.device", GONE, ["hardware.device: missing"]),
        ("hardware.count", 0, ["hardware.count: 0"]),
        ("models", {}, ["models: "]),
        ("tenants", {}, ["tenants: "]),
        ("tenants.chat", None, ["tenants.chat: "]),
        ("tenants.chat.arrivals.rate_per_s", -1, ["tenants.chat.arrivals.rate_per_s: -1"]),
        ("tenants.chat.arrivals.rate_per_s", GONE, ["tenants.chat.arrivals.rate_per_s: missing"]),
        ("tenants.chat.arrivals.kind", "uniform", ["tenants.chat.arrivals", "poisson", "trace"]),
        ("tenants.chat.arrivals.kind", GONE, ["tenants.chat.arrivals", "kind"]),
        ("tenants.chat.prompt_tokens.mean", -5, ["tenants.chat.prompt_tokens.mean: -5"]),
        ("tenants.chat.slo", {"ttft_s": 0}, ["tenants.chat.slo.ttft_s: 0"]),
        ("tenants.chat.slo", {"ttft_s": float("inf")}, ["tenants.chat.slo.ttft_s: inf"]),
        ("tenants.chat.model", "other", ["tenants.chat.model", "'other'", "m"]),
        ("deployment.kind", "magic", ["deployment.kind: 'magic'"]),
        ("deployment.kv_blocks", 0, ["deployment.kv_blocks: 0"]),
        ("deployment.scheduler.max_num_seqs", 0, ["deployment.scheduler.max_num_seqs: 0"]),
        ("deployment.scheduler.max_num_seqs", 1.5, ["deployment.scheduler.max_num_seqs: 1.5"]),
    ],
)
def test_a_wrong_value_is_named(
    tiny_scenario: Content, field: str, value: Any, words: list[str]
) -> None:
    """The dotted field as written in the file, the value, and what was expected."""
    message = _refusal(_changed(tiny_scenario(), field, value))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("duratoin_s", "duration_s"),
        ("deployment.replica", "replicas"),
        ("deployment.scheduler.max_num_seq", "max_num_seqs"),
        ("tenants.chat.arrivals.rate_per_sec", "rate_per_s"),
        ("tenants.chat.prompt_tokens.means", "mean"),
        ("hardware.counts", "count"),
    ],
)
def test_a_misspelt_key_suggests_the_right_one(
    tiny_scenario: Content, field: str, meant: str
) -> None:
    """Instead of being ignored."""
    message = _refusal(_changed(tiny_scenario(), field, 1))
    assert message == f"{field}: unknown key; did you mean {meant!r}?"


def test_a_misspelt_key_comes_before_what_it_leaves_missing(tiny_scenario: Content) -> None:
    """`tenant` for `tenants` is one mistake, and told as one."""
    content = tiny_scenario()
    content["tenant"] = content.pop("tenants")
    assert _refusal(content) == "tenant: unknown key; did you mean 'tenants'?"


@pytest.mark.parametrize(
    ("field", "keys"),
    [
        ("qqqqqq", "name, description, duration_s, models, tenants, hardware, deployment, "),
        ("tenants.chat.slo", "ttft_s, tpot_s, turnaround_s"),
        ("tenants.chat.arrivals.max_num_seqs", "kind, rate_per_s"),
    ],
)
def test_a_key_like_no_other_lists_what_there_is(
    tiny_scenario: Content, field: str, keys: str
) -> None:
    """The keys of that place and of no other, and no far-fetched suggestion."""
    value = {"qqqqqq": 1} if field.endswith("slo") else 1
    told = _refusal(_changed(tiny_scenario(), field, value))
    place = f"{field}.qqqqqq" if field.endswith("slo") else field
    assert told.startswith(f"{place}: unknown key; there are {keys}")
    assert "folder" not in told


@pytest.mark.parametrize("key", ["shares", "share"])
def test_what_is_suggested_exists_at_that_place(tiny_scenario: Content, key: str) -> None:
    """`shares` is a gateway's, and no share of SMs."""
    deployment = {"kind": "mps", key: {"m": 50}}
    told = _refusal(_changed(tiny_scenario(), "deployment", deployment))
    assert told.startswith(f"deployment.{key}: unknown key; there are ")
    assert "sm_percent" in told


@pytest.mark.parametrize(
    ("deployment", "place"),
    [
        ({"kind": "tensor_parallel", "tensor_parallel": 0}, "tensor_parallel: 0"),
        ({"tensor_parallel": 2, "scheduler": {"policy": "x"}}, "scheduler.policy: 'x'"),
        ({"tensor_parallel": 2, "scheduler": {"max_num_seqs": 0}}, "scheduler.max_num_seqs: 0"),
        ({"tensor_parallel": 2, "scheduler": {"polic": "x"}}, "scheduler.polic: unknown key"),
        ({"kind": "expert_parallel", "expert_parallel": 1}, "expert_parallel: 1"),
        ({"kind": "dedicated", "experts": {"resident": 7}}, "experts.resident: 7"),
    ],
)
def test_a_place_is_named_as_it_is_written(
    tiny_scenario: Content, deployment: dict[str, Any], place: str
) -> None:
    """Where a kind is called like one of its fields, and where a field has several types."""
    content = _changed(tiny_scenario(), "deployment", {"kind": "tensor_parallel", **deployment})
    assert _refusal(content).startswith(f"deployment.{place}")


def test_too_few_devices_shows_the_arithmetic(tiny_scenario: Content) -> None:
    """Two models of three replicas each need six devices, and there is one."""
    content = tiny_scenario()
    content["models"]["n"] = content["models"]["m"]
    content["deployment"]["replicas"] = 3
    message = _refusal(content)
    assert "dedicated needs 6 devices (2 models x 3 replicas), hardware.count is 1" in message


@pytest.mark.parametrize("field", ["prompt_tokens", "output_tokens"])
def test_lengths_of_a_trace_need_its_arrivals(tiny_scenario: Content, field: str) -> None:
    """A Poisson stream has no trace to take lengths from."""
    message = _refusal(_changed(tiny_scenario(), f"tenants.chat.{field}", {"kind": "trace"}))
    assert message.startswith("tenants.chat: ")
    assert f"{field}.kind is trace, so arrivals.kind must be trace too" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected keys and values, found an empty file"),
        ("# nothing but a comment\n", "an empty file"),
        ("- a\n- b\n", "expected keys and values, found list"),
        ("hello", "found str"),
        ("a: [1\n", "not valid YAML"),
        ("a: b: c\n", "not valid YAML"),
        ("x: !!python/name:os.system\n", "not valid YAML"),
    ],
)
def test_what_is_no_scenario_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    """The file is named; YAML's many lines become one."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=words) as caught:
        load_scenario(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """A picture, say."""
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ScenarioError, match="not readable"):
        load_scenario(path)


@pytest.mark.parametrize(
    ("field", "folder"),
    [
        ("models.m.architecture", "models"),
        ("models.m.profile", "profiles"),
        ("hardware.device", "hardware"),
    ],
)
def test_an_unknown_part_lists_what_is_shipped(
    tiny_scenario: Content, field: str, folder: str
) -> None:
    """Parts are looked up when the scenario runs."""
    scenario = scenario_from(_changed(tiny_scenario(), field, "no-such-thing"))
    with pytest.raises(ScenarioError, match="no-such-thing") as caught:
        simulate(scenario)
    for name in shipped(folder):
        assert name in str(caught.value)


def test_an_unknown_workload_lists_the_shipped(tiny_scenario: Content) -> None:
    """Its tables are filled in when the scenario is read."""
    lengths = {"kind": "quantiles", "workload": "no-such-thing"}
    content = _changed(tiny_scenario(), "tenants.chat.prompt_tokens", lengths)
    with pytest.raises(ScenarioError, match=r"no-such-thing.*azure-conv-2023"):
        scenario_from(content)


def test_a_workload_fills_in_the_table_of_its_field(tiny_scenario: Content) -> None:
    """Prompts take the prompt table, answers the output table; the scale stays."""
    lengths = {"kind": "quantiles", "workload": "azure-conv-2023", "scale": 0.5}
    content = tiny_scenario()
    content["tenants"]["chat"] |= {"prompt_tokens": lengths, "output_tokens": lengths}
    tenant = scenario_from(content).tenants["chat"]
    workload = load_workload("azure-conv-2023")
    assert isinstance(tenant.prompt_tokens, Quantiles)
    assert isinstance(tenant.output_tokens, Quantiles)
    assert tenant.prompt_tokens.tokens == workload.prompt_tokens
    assert tenant.output_tokens.tokens == workload.output_tokens
    assert tenant.prompt_tokens.levels == workload.levels
    assert tenant.prompt_tokens.scale == 0.5


def test_a_workload_beside_the_scenario_is_found(tiny_scenario: Content, tmp_path: Path) -> None:
    """By a path relative to the scenario file."""
    workload = load_workload("azure-conv-2023").model_dump(mode="json") | {"name": "mine"}
    (tmp_path / "mine-w.yaml").write_text(yaml.safe_dump(workload))
    lengths = {"kind": "quantiles", "workload": "mine-w.yaml"}
    content = _changed(tiny_scenario(), "tenants.chat.prompt_tokens", lengths)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    prompts = load_scenario(tmp_path / "mine.yaml").tenants["chat"].prompt_tokens
    assert isinstance(prompts, Quantiles)
    assert prompts.tokens[-1] == 14050


def test_targets_by_tenant(tiny_scenario: Content) -> None:
    """What is not given is no target."""
    content = _changed(tiny_scenario(), "tenants.chat.slo", {"ttft_s": 0.5})
    assert scenario_from(content).slos == {"chat": SloTargets(ttft_s=0.5)}


def test_a_trace_is_replaced_where_one_is_replayed(tiny_scenario: Content) -> None:
    """Only the tenant that replays; its window and speed stay."""
    content = tiny_scenario()
    replay = {"kind": "trace", "path": "old.csv", "speedup": 2.0}
    content["tenants"]["replay"] = content["tenants"]["chat"] | {"arrivals": replay}
    before = scenario_from(content)
    after = before.with_trace(Path("new.csv"))
    arrivals = after.tenants["replay"].arrivals
    assert isinstance(arrivals, TraceArrivals)
    assert (arrivals.path, arrivals.speedup) == ("new.csv", 2.0)
    assert after.tenants["chat"] == before.tenants["chat"]


def test_a_trace_without_a_place_is_refused(tiny_scenario: Content) -> None:
    """Nobody replays one."""
    with pytest.raises(ScenarioError, match=r"no tenant has arrivals\.kind: trace"):
        scenario_from(tiny_scenario()).with_trace(Path("new.csv"))


def test_a_scenario_does_not_change(tiny_scenario: Content) -> None:
    """Frozen, down to its parts."""
    scenario = scenario_from(tiny_scenario())
    with pytest.raises(ValidationError, match="frozen"):
        scenario.deployment.replicas = 2  # type: ignore[misc]


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["trace", "quantiles", "poisson", "azure-conv-2023", "m", "../x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
fields = st.sampled_from(
    [
        *Scenario.model_fields,
        "models.m",
        "models.m.profile",
        "tenants.chat",
        "tenants.chat.model",
        "tenants.chat.arrivals",
        "tenants.chat.arrivals.kind",
        "tenants.chat.arrivals.rate_per_s",
        "tenants.chat.prompt_tokens",
        "tenants.chat.prompt_tokens.kind",
        "tenants.chat.prompt_tokens.max",
        "tenants.chat.slo",
        "tenants.chat.extra",
        "hardware.count",
        "deployment.scheduler",
        "deployment.replicas",
        "extra",
    ]
)


@settings(max_examples=300)
@given(changes=st.lists(st.tuples(fields, st.just(GONE) | junk), min_size=1, max_size=3))
def test_junk_is_a_scenario_or_a_scenario_error(
    tiny_scenario: Content, changes: list[tuple[str, Any]]
) -> None:
    """Anything put anywhere into a good file, or taken out of it, is never a traceback."""
    content = tiny_scenario()
    for field, value in changes:
        try:
            content = _changed(content, field, value)
        except (KeyError, TypeError):
            continue  # an earlier change has taken this place away
    try:
        scenario = scenario_from(content, source="my.yaml")
    except ScenarioError:
        return
    assert set(scenario.tenants) == set(content["tenants"])


@given(content=junk)
def test_junk_alone_is_a_scenario_error(content: Any) -> None:
    """No scenario can be made of nothing."""
    with pytest.raises(ScenarioError):
        scenario_from(content)
