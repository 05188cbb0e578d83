"""The page as a person uses it: it answers, follows changes, and explains what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import yaml
from streamlit.testing.v1 import AppTest

from moesim.cost.curves import WEAKEST
from moesim.dashboard.prediction import BASIS_MEANING
from moesim.evidence.compare import compare_replications
from moesim.facts.catalog import shipped
from moesim.scenario import load_scenario
from moesim.serving.records import write_records
from moesim.simulation.replications import replicate
from moesim.simulation.run import simulate

APP = Path(__file__).parents[2] / "app.py"
RATE = "quickstart/tenants.chat.arrivals.rate_per_s"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """Open the page, its validation folder still empty."""
    monkeypatch.setenv("MOESIM_DEMO", str(tmp_path))
    return AppTest.from_file(str(APP), default_timeout=60).run()


def tile(page: AppTest, label: str) -> str:
    return next(str(metric.value) for metric in page.metric if metric.label == label)


def test_first_sight_is_the_quickstart_answered(page: AppTest) -> None:
    assert not page.exception
    assert not page.error
    metrics = replicate(load_scenario("quickstart")).metrics()
    throughput = metrics["overall"]["throughput_rps"]
    low, high = metrics["intervals"]["overall"]["throughput_rps"]
    assert tile(page, "Throughput [req/s]") == f"{throughput:.2f}"
    assert page.metric[0].delta == f"[{low:.2f}, {high:.2f}]"
    labels = {metric.label for metric in page.metric}
    assert labels >= {"TTFT p99 [ms]", "TPOT p50 [ms]", "ITL p99 [ms]", "Utilisation [%]"}
    assert page.info[0].value == "Steady from the start."
    assert any("interpolated" in text.value for text in page.markdown)


def test_more_load_is_more_throughput(page: AppTest) -> None:
    before = float(tile(page, "Throughput [req/s]"))
    page.number_input(key=RATE).set_value(4.5).run()
    assert not page.exception
    assert float(tile(page, "Throughput [req/s]")) > before


def test_help_and_bounds_are_the_scenario_s_own(page: AppTest) -> None:
    widget = page.number_input(key=RATE)
    assert widget.label == "Mean requests per second"
    assert (widget.min, widget.max) == (0, 1e5)
    assert "tenants.chat.arrivals.rate_per_s" in widget.help


def test_what_cannot_be_is_one_line(page: AppTest) -> None:
    page.number_input(key=RATE).set_value(0.0).run()
    assert not page.exception
    (error,) = page.error
    assert "tenants.chat.arrivals.rate_per_s" in error.value
    assert "\n" not in error.value
    assert not page.metric


def test_added_replicas_get_devices(page: AppTest) -> None:
    page.number_input(key="quickstart/deployment.replicas").set_value(2).run()
    assert not page.error
    assert any("2 devices" in caption.value for caption in page.caption)


def test_an_unknown_profile_is_one_line(page: AppTest) -> None:
    page.selectbox(key="quickstart/demo/profile").set_value("a file of mine").run()
    page.text_input(key="quickstart/demo/profile path").set_value("nowhere.json").run()
    assert [error.value.split(":")[0] for error in page.error] == ["nowhere.json"]


def test_the_profile_that_the_demo_made_is_offered(page: AppTest, tmp_path: Path) -> None:
    made = tmp_path / "profile.json"
    copyfile(shipped("profiles")["demo-cpu"], made)
    page.run().selectbox(key="quickstart/demo/profile").set_value(str(made)).run()
    assert not page.error
    assert page.metric


def test_a_scenario_file_of_one_s_own(page: AppTest, tmp_path: Path) -> None:
    page.selectbox(key="scenario").set_value("a file of mine").run()
    assert not page.error
    content = load_scenario("quickstart").model_dump(mode="json") | {"duration_s": 5}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    page.text_input(key="scenario path").set_value(str(path)).run()
    assert not page.error
    assert page.metric


@pytest.mark.parametrize("text", ["- a list", "name: [", ""])
def test_a_file_that_is_no_scenario_is_one_line(page: AppTest, tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    page.selectbox(key="scenario").set_value("a file of mine").run()
    page.text_input(key="scenario path").set_value(str(path)).run()
    assert not page.exception
    assert [str(path) in error.value for error in page.error] == [True]


def test_without_live_runs_the_page_waits_for_the_button(page: AppTest) -> None:
    before = tile(page, "Throughput [req/s]")
    page.checkbox(key="live").set_value(False).run()
    page.number_input(key=RATE).set_value(4.5).run()
    assert tile(page, "Throughput [req/s]") == before
    assert any("press Run" in info.value for info in page.info)
    page.button[0].click().run()
    assert tile(page, "Throughput [req/s]") != before
    assert not any("press Run" in info.value for info in page.info)


def test_a_single_run_has_no_intervals(page: AppTest) -> None:
    """Its figures are the run's own."""
    page.number_input(key="replications").set_value(1).run()
    assert not page.exception
    throughput = simulate(load_scenario("quickstart")).metrics()["overall"]["throughput_rps"]
    assert tile(page, "Throughput [req/s]") == f"{throughput:.2f}"
    assert {metric.delta for metric in page.metric} == {""}


def test_too_much_load_is_said_first(page: AppTest) -> None:
    """A run above capacity is an error's colour, in the words of the verdict."""
    page.number_input(key=RATE).set_value(60.0).run()
    assert not page.exception
    assert [error.value.split(":")[0] for error in page.error] == ["Above capacity"]


@pytest.mark.parametrize("name", ["demo", "demo-trace"])
def test_every_shipped_scenario_opens(page: AppTest, name: str) -> None:
    """The trace itself is not shipped, so its scenario says which file is missing."""
    page.selectbox(key="scenario").set_value(name).run()
    assert not page.exception
    assert [error.value.split(": ")[1] for error in page.error] == (
        ["no such trace file; give its path"] if name == "demo-trace" else []
    )


def test_one_of_several_deployments_is_chosen(page: AppTest) -> None:
    """Two cards are faster than one that two models share; a number of either can be turned."""
    page.selectbox(key="scenario").set_value("two-variants").run()
    page.number_input(key="replications").set_value(1).run()
    assert not page.exception
    assert not page.error
    shared = {metric.label: metric.value for metric in page.metric}
    page.number_input(key="two-variants/consolidated (the scenario's)/deployment.ratio").set_value(
        0.0
    ).run()
    assert {metric.label: metric.value for metric in page.metric} != shared
    page.selectbox(key="two-variants/deployment kind").set_value("dedicated, two cards").run()
    assert not page.exception
    assert {metric.label: metric.value for metric in page.metric} != shared


def test_without_a_demo_the_page_says_how_to_make_one(page: AppTest) -> None:
    assert any("make demo" in info.value for info in page.info)


def test_a_demo_is_shown_beside_its_prediction(
    page: AppTest, tmp_path: Path, predicting: Callable[..., dict[str, Any]]
) -> None:
    records = simulate(load_scenario("quickstart")).records
    for name in ("measured-1", "measured-2", "predicted"):
        write_records(records, tmp_path / f"{name}.parquet")
    comparison = compare_replications([records, records], predicting(records))
    rows = json.loads(comparison.to_json(orient="records"))
    content = {"comparison": rows, "facts": {"Host": "two cores"}, "notes": ["a note"]}
    (tmp_path / "comparison.json").write_text(json.dumps(content))
    page.run()
    assert not page.exception
    assert any(text.value.startswith("17 of 17") for text in page.subheader)
    table = next(frame.value for frame in page.dataframe if "Verdict" in frame.value)
    assert list(table["Verdict"]) == ["close"] * 17
    assert list(table["Hit"]) == ["yes"] * 17
    assert table["Predicted [low, high]"].str.fullmatch(r"[\d,.]+ \[[\d,.]+, [\d,.]+\]").all()
    assert any("a note" in caption.value for caption in page.caption)


def test_a_broken_demo_is_one_line(page: AppTest, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text("{")
    page.run()
    assert not page.exception
    (error,) = page.error
    assert "comparison.json" in error.value


def test_every_basis_is_explained() -> None:
    """Whatever a duration rests on."""
    assert set(BASIS_MEANING) == set(WEAKEST)


@pytest.mark.parametrize("name", ["dedicated", "mig"])
def test_every_deployment_has_a_page(name: str) -> None:
    """Scenarios without a measured profile, on a GPU that is divided or not."""
    page = AppTest.from_file(str(APP), default_timeout=60).run()
    page.selectbox[0].set_value(name).run()
    assert not page.exception
    assert not page.error
    assert page.metric
