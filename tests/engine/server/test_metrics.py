"""The text that Prometheus scrapes."""

from engine.server.metrics import BOUNDS_S, Metrics, Reading, exposition

GAUGES = {
    "vllm:num_requests_running": 2,
    "vllm:num_requests_waiting": 0,
    "vllm:kv_cache_usage_perc": 0.25,
}


def test_a_histogram_adds_up() -> None:
    """Buckets count everything up to their bound, which is inclusive."""
    metrics = Metrics()
    name = "vllm:inter_token_latency_seconds"
    with metrics.together():
        for seconds in (0.001, 0.0011, 0.3, 1e6):
            metrics.observe(name, seconds)
    lines = list(metrics.lines(name, 'model_name="m"'))
    buckets = [line.rsplit(" ", 1)[1] for line in lines if "_bucket" in line]
    assert len(buckets) == len(BOUNDS_S) + 1
    assert f'{name}_bucket{{model_name="m",le="0.001"}} 1' in lines
    assert f'{name}_bucket{{model_name="m",le="0.0025"}} 2' in lines
    assert f'{name}_bucket{{model_name="m",le="500"}} 3' in lines
    assert f'{name}_bucket{{model_name="m",le="+Inf"}} 4' in lines
    assert lines[-2:] == [
        f'{name}_sum{{model_name="m"}} 1000000.3021',
        f'{name}_count{{model_name="m"}} 4',
    ]


def test_each_metric_has_one_head_for_all_models() -> None:
    """Then a sample a model, its name escaped."""
    readings = [Reading(model=name, metrics=Metrics(), gauges=GAUGES) for name in ("a", 'b"')]
    lines = exposition(readings).splitlines()
    heads = [line for line in lines if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    place = lines.index("# TYPE vllm:kv_cache_usage_perc gauge")
    assert lines[place + 1 : place + 3] == [
        'vllm:kv_cache_usage_perc{model_name="a"} 0.25',
        'vllm:kv_cache_usage_perc{model_name="b\\""} 0.25',
    ]
