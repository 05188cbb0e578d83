"""Attention: laws that are exact between measured points."""

from itertools import product

import pytest

from moesim.cost.expected import Rates
from moesim.cost.kernels.attention import Decoding, Heads, Prompts
from moesim.cost.kernels.tables import Decode, Prefill
from moesim.errors import ProfileError
from moesim.facts.catalog import load_device

RATES = Rates.of(load_device("h100-sxm-80gb"))
BYTES_PER_S = RATES.bytes_per_s / 2


def _prompt_us(heads: int, new: int, context: int = 0) -> float:
    return 2.0 + 0.01 * new + heads * 1e-6 * new * (new + 2 * context)


def _prompts(*several: int, contexts: tuple[int, ...] = (0,)) -> Prompts:
    points = list(product((16, 128, 1024, 8192), contexts))
    return Prompts(
        [
            Prefill(
                heads=heads,
                kv_heads=8,
                head_dim=128,
                kv_format="bf16",
                sequences=(1,) * len(points),
                new_tokens=tuple(new for new, _ in points),
                context=tuple(context for _, context in points),
                us=tuple(_prompt_us(heads, *point) for point in points),
            )
            for heads in several
        ],
        RATES,
    )


@pytest.mark.parametrize("new", [1, 16, 40, 300, 5000, 20000])
def test_a_prompt_between_lengths(new: int) -> None:
    """A start, a part that goes with the tokens and one with their square; beyond, it goes on.

    The start is the line's through the two shortest, so that a little of the square is in it.
    """
    seconds, _ = _prompts(32).seconds(Heads(32, 8, 128), "bf16", new, 0)
    assert seconds * 1e6 == pytest.approx(_prompt_us(32, max(16, new)), rel=0.03)


def test_a_context_adds_its_products() -> None:
    """At the rate at which the longest prompts add theirs."""
    prompts, heads = _prompts(32), Heads(32, 8, 128)
    alone = prompts.seconds(heads, "bf16", 1024, 0)[0]
    behind = prompts.seconds(heads, "bf16", 1024, 65536)[0]
    assert (behind - alone) * 1e6 == pytest.approx(32e-6 * 1024 * 2 * 65536, rel=0.05)


def test_a_tile_goes_through_all_keys() -> None:
    """However few the new tokens are: what one more key takes, from single short prompts."""
    us = {16: 10.0, 256: 12.0, 1024: 20.0, 8192: 4000.0}
    curve = Prefill(
        heads=4,
        kv_heads=1,
        head_dim=128,
        kv_format="bf16",
        sequences=(1,) * 4,
        new_tokens=tuple(us),
        context=(0,) * 4,
        us=tuple(us.values()),
    )
    prompts, heads = Prompts([curve], RATES), Heads(4, 1, 128)
    alone = prompts.seconds(heads, "bf16", 16, 0)[0]
    behind = prompts.seconds(heads, "bf16", 16, 20_000)[0]
    assert (behind - alone) * 1e6 == pytest.approx(20_000 * 8.0 / 768)


def test_measured_contexts_are_interpolated() -> None:
    """They go before what would be reckoned."""
    prompts = _prompts(32, contexts=(0, 1024, 4096))
    seconds, _ = prompts.seconds(Heads(32, 8, 128), "bf16", 1024, 4096)
    assert seconds * 1e6 == pytest.approx(_prompt_us(32, 1024, 4096))
    between, _ = prompts.seconds(Heads(32, 8, 128), "bf16", 1024, 2000)
    assert _prompt_us(32, 1024, 1024) < between * 1e6 < _prompt_us(32, 1024, 4096)


def _decode_us(kv_heads: int, batch: float, context: float) -> float:
    return 5.0 + 1e6 * batch * context * kv_heads * 128 * 4 / BYTES_PER_S


def _decoding(*several: tuple[int, int]) -> Decoding:
    points = list(product((1, 8, 64, 256), (2, 128, 1024, 8192)))
    return Decoding(
        [
            Decode(
                heads=heads,
                kv_heads=kv_heads,
                head_dim=128,
                kv_format="bf16",
                sequences=tuple(batch for batch, _ in points),
                context=tuple(context for _, context in points),
                us=tuple(_decode_us(kv_heads, *point) for point in points),
            )
            for heads, kv_heads in several
        ],
        RATES,
    )


@pytest.mark.parametrize(("batch", "context"), [(1, 128), (8, 500), (30, 1024), (200, 3000)])
def test_decoding_between_batches_and_contexts(batch: int, context: int) -> None:
    """Bound by the bandwidth, or by the launch."""
    seconds, basis = _decoding((32, 8)).seconds(Heads(32, 8, 128), "bf16", batch, context)
    assert seconds * 1e6 == pytest.approx(_decode_us(8, batch, context), rel=0.03)
    assert basis in {"measured", "interpolated"}


def test_longer_contexts_take_what_reading_takes() -> None:
    """Beyond the last point, and it says so."""
    decoding = _decoding((32, 8))
    seconds, basis = decoding.seconds(Heads(32, 8, 128), "bf16", 64, 65536)
    assert seconds * 1e6 == pytest.approx(_decode_us(8, 64, 65536), rel=0.03)
    assert basis == "extrapolated"


def test_heads_between_measured_ones() -> None:
    """With as many heads of keys and values; the products go with the query heads."""
    prompts = _prompts(32, 64)
    seconds, basis = prompts.seconds(Heads(48, 8, 128), "bf16", 8192, 0)
    assert seconds * 1e6 == pytest.approx(_prompt_us(48, 8192), rel=0.02)
    assert basis == "interpolated"


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (64, 16), (12, 2)])
@pytest.mark.parametrize("new", [16, 300, 8192])
def test_prompts_of_other_heads_compute_on_queries_and_keep_keys(
    heads: int, kv_heads: int, new: int
) -> None:
    """From 32 heads with 8 for keys: arithmetic with the queries, a pass with keys and values."""
    pass_us = 2e6 * 128 * 4 / (0.8 * RATES.bytes_per_s)

    def us(heads: int, kv_heads: int, new: int) -> float:
        return heads * (1e-6 * new * new + 2e-3 * new) + pass_us * kv_heads * new

    sizes = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    table = Prefill(
        heads=32,
        kv_heads=8,
        head_dim=128,
        kv_format="bf16",
        sequences=(1,) * len(sizes),
        new_tokens=sizes,
        context=(0,) * len(sizes),
        us=tuple(us(32, 8, size) for size in sizes),
    )
    prompts = Prompts([table], RATES)
    seconds, basis = prompts.seconds(Heads(heads, kv_heads, 128), "bf16", new, 0)
    assert seconds * 1e6 == pytest.approx(us(heads, kv_heads, new), rel=0.02)
    assert basis == "extrapolated"


def test_a_context_is_read_by_the_heads_themselves() -> None:
    """Four times the heads of keys and values take four times as long to read."""
    prompts = _prompts(32)
    few, many = Heads(32, 8, 128), Heads(32, 32, 128)

    def beside(heads: Heads) -> float:
        ends = [prompts.seconds(heads, "bf16", 16, context)[0] for context in (10**6, 2 * 10**6)]
        return ends[1] - ends[0]

    assert beside(many) == pytest.approx(10**6 * 32 * 128 * 4 / RATES.bytes_per_s)
    assert beside(few) < beside(many)


def test_other_heads_are_scaled_and_say_so() -> None:
    """By the keys and values that are read."""
    seconds, basis = _decoding((32, 8)).seconds(Heads(32, 4, 128), "bf16", 256, 8192)
    assert seconds * 1e6 == pytest.approx(_decode_us(4, 256, 8192), rel=0.01)
    assert basis == "extrapolated"


def _in_parts_us(parts: float, context: float) -> float:
    """Return what a machine takes that is full from 400 parts on."""
    return 5.0 + parts * context * 128 * 4 / (1e-6 * BYTES_PER_S * min(1.0, (parts / 400) ** 0.5))


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (64, 16), (12, 4)])
@pytest.mark.parametrize(("batch", "context"), [(2, 1024), (16, 128), (64, 8192)])
def test_as_many_parts_take_as_long(heads: int, kv_heads: int, batch: int, context: int) -> None:
    """Few sequences with many heads of keys and values fill the device as more with few do."""
    batches = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    points = list(product(batches, (128, 1024, 8192)))
    table = [
        Decode(
            heads=4 * several,
            kv_heads=several,
            head_dim=128,
            kv_format="bf16",
            sequences=tuple(batch for batch, _ in points),
            context=tuple(context for _, context in points),
            us=tuple(_in_parts_us(batch * several, context) for batch, context in points),
        )
        for several in (2, 8)
    ]
    asked = Heads(heads, kv_heads, 128)
    decoding = Decoding(table, RATES)
    seconds, basis = decoding.seconds(asked, "bf16", batch, context)
    assert seconds * 1e6 == pytest.approx(_in_parts_us(batch * kv_heads, context), rel=1e-6)
    assert basis == "extrapolated"
    assert decoding.reach(asked, "bf16", batch) == pytest.approx(8192)
    assert batch in decoding.batches(asked, "bf16")


def test_an_unknown_kv_format_names_those_there_are() -> None:
    """One clear line."""
    with pytest.raises(ProfileError, match=r"kv_precision: no attention .* fp8.*have bf16"):
        _decoding((32, 8)).seconds(Heads(32, 8, 128), "fp8", 1, 1)
