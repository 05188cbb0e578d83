"""Static batches of TensorRT-LLM 0.9: Mixtral, of which three rows say what the others are by."""

from pathlib import Path

import pandas as pd
import pytest

from moesim.evidence.accuracy.outcome import Choice, accuracy

TABLE = Path(__file__).parents[3] / "../shared/reference/serving.csv"

pytestmark = pytest.mark.skipif(not TABLE.exists(), reason="no shared/reference/serving.csv here")


def _mixtral(gpu: str) -> pd.DataFrame:
    return accuracy(TABLE, Choice(source="NVIDIA/TensorRT-LLM@6533", gpu=gpu, model="Mixtral")).rows


def test_wide_experts_by_older_kernels() -> None:
    """H100: of the first token of 2,048 the rate was found; routing on A100 alone."""
    rows = _mixtral("H100")
    assert list(rows[~rows["judged"]]["isl"]) == [2048.0]
    judged = rows[rows["judged"]]
    assert len(judged) == 5
    assert judged["error"].abs().max() < 0.09


def test_routing_of_made_up_prompts() -> None:
    """A100: two of six rows say how it was; without, all experts are read and rows are 49 % off."""
    rows = _mixtral("A100")
    assert len(rows[~rows["judged"]]) == 2
    assert rows[rows["judged"]]["error"].abs().max() < 0.13
