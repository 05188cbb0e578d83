"""How far times to the first token of a closed loop may be from simulated ones: who waits for whom.

Simulated users all ask at once in the beginning, and an engine has a seat for each. Real ones may
begin one by one, so that nobody's prompt is in the way of another's. And an engine may have a seat
less than there are users, if these are several: then one of them always waits, and by Little's law
each request on average a share of one in the users of the time that an answer takes. (Times of
TensorRT-LLM 1.0 with eight users grow in proportion to answers, by just that.)
"""

from moesim.evidence.accuracy.course import Course
from moesim.evidence.accuracy.experiments import Figure


def reach(figure: Figure, course: Course) -> tuple[float, float] | None:
    """Return the least and the most that a figure may be, in its unit; None if as simulated."""
    users = figure.experiment.workload.users
    if users is None or figure.metric.of != "ttft_s" or figure.metric.statistic != "mean":
        return None
    records = course.records
    first_s = records["first_token_s"] - records["arrival_s"]
    turnaround_s = records["finish_s"] - records["arrival_s"]
    seat_s = turnaround_s.mean() / users if users > 1 else 0.0
    most_s = float(first_s.mean() + seat_s)
    return float(first_s.min()) * figure.metric.per_second, most_s * figure.metric.per_second
