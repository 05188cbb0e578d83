"""Record tables written by hand: times are whole seconds, so that a chart can be checked by eye."""

import pandas as pd
import pytest

from moesim.serving.records import COMPLETED, REFUSED, Record, records_frame


@pytest.fixture
def records() -> pd.DataFrame:
    """Three requests served and one refused; TTFT 1, 2 and 3 s, TPOT 1, 1 and none."""
    times = [(0, 1, 3, 3), (1, 3, 4, 2), (2, 5, 5, 1)]
    served = [
        Record(
            request_id=number,
            tenant="chat",
            model="demo",
            replica="demo/0",
            arrival_s=arrival,
            scheduled_s=arrival,
            first_token_s=first,
            finish_s=finish,
            prompt_tokens=8,
            output_tokens=tokens,
            outcome=COMPLETED,
        )
        for number, (arrival, first, finish, tokens) in enumerate(times)
    ]
    refused = Record(
        request_id=3, tenant="chat", model="demo", replica="demo/0", arrival_s=3, outcome=REFUSED
    )
    return records_frame([*served, refused])


@pytest.fixture
def slower(records: pd.DataFrame) -> pd.DataFrame:
    """Stretch every wait by a quarter."""
    stretched = {
        name: records["arrival_s"] + 1.25 * (records[name] - records["arrival_s"])
        for name in ("first_token_s", "finish_s")
    }
    return records.assign(**stretched)
