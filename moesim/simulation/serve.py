"""Serving a stream whose arrivals are all known: sums where they hold, the scheduler elsewhere."""

import pandas as pd

from moesim.simulation.ahead import run_ahead
from moesim.simulation.course import Course, Stream
from moesim.simulation.pressure import press_on
from moesim.simulation.replica import Replica, Served, Usage, records_of, refused_of


def serve(replica: Replica, requests: pd.DataFrame) -> Served:
    """Serve an open-loop stream, which nothing outside can disturb, in jumps."""
    refused = refused_of(replica, requests)
    accepted = requests if not refused.any() else requests[~refused]
    stream = Stream.of(
        accepted,
        replica.cache.block_size,
        tenants=replica.order != "fcfs",
        prefixes=replica.keeps_prefixes and "prefix" in accepted,
        priorities=replica.priorities,
    )
    course = Course()
    if replica.in_sums:
        while not run_ahead(replica, stream, course) and not press_on(replica, stream, course):
            pass
    else:
        press_on(replica, stream, course, stay=True)
    return Served(
        records=records_of(replica, requests, refused, stream),
        log=course.log(accepted["request_id"].to_numpy()),
        usage=Usage.of(replica, course),
        basis=replica.cost.basis(),
        copies=tuple(course.copies),
    )
