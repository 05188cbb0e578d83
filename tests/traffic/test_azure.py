"""The real Azure conversation trace, where it lies beside the checkout."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.scenario import load_workload
from moesim.traffic.traces import read_trace

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "../shared/reference/traces/azure2023/AzureLLMInferenceTrace_conv.csv"

pytestmark = pytest.mark.skipif(not TRACE.exists(), reason=f"{TRACE.resolve()} is not here")


@pytest.fixture(scope="module")
def azure() -> pd.DataFrame:
    """Return the conversation trace of 2023."""
    return read_trace(TRACE).frame


def test_every_request_is_read(azure: pd.DataFrame) -> None:
    """19,366 requests over 3,502 s, the first of 374 and 44 tokens."""
    assert len(azure) == 19_366
    assert azure["arrival_s"].iloc[-1] == pytest.approx(3501.721937, abs=1e-6)
    assert azure.iloc[0].tolist() == [0, 374, 44]


def test_the_shipped_workload_is_its_fit(azure: pd.DataFrame) -> None:
    """Rate, burstiness and both length tables of `azure-conv-2023` are the trace's own."""
    workload = load_workload("azure-conv-2023")
    gaps = np.diff(azure["arrival_s"])
    assert workload.rate_per_s == pytest.approx(1 / gaps.mean(), abs=5e-4)
    assert workload.cv == pytest.approx(gaps.std() / gaps.mean(), abs=5e-4)
    for field in ("prompt_tokens", "output_tokens"):
        quantiles = np.rint(np.quantile(azure[field], workload.levels))
        assert getattr(workload, field) == tuple(quantiles)
