"""Tensor parallelism: ranks together give what one rank gives, hold parts, and end in one line."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from multiprocessing import Pipe, get_context
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from engine import cli
from engine.model.checkpoint import load_decoder, random_decoder, save_decoder
from engine.model.decoder import Decoder
from engine.model.layout import places
from engine.model.parallel import Meeting, Rank, Shard
from engine.model.step import PagedKvCache
from engine.serve import lead
from engine.serve.engine import Engine, EngineConfig
from engine.serve.follow import follow
from engine.serve.generate import generate
from engine.serve.inputs import Flat
from engine.serve.lead import Companion, Leader, leading
from engine.serve.packing import packed, unpacked
from engine.server.hosting import Hosting, service_of
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec
from moesim.serving.records import Record
from moesim.serving.scheduling import Limits

OUTPUT = 12
NOWHERE = Meeting(kind="cpu", file=Path("/nowhere"), patience_s=1)

TINY = {
    "vocab_size": 97, "hidden_size": 32, "max_position_embeddings": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "dtype": "float32",
}  # fmt: skip
MIXTRAL = {
    **TINY, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
    "head_dim": 8, "sliding_window": None,
}  # fmt: skip
LLAMA = {**TINY, "model_type": "llama"}
QWEN = {
    **TINY, "model_type": "qwen3_moe", "head_dim": 16, "moe_intermediate_size": 24,
    "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": MIXTRAL,
    "llama": LLAMA,
    "llama, one key head": {**LLAMA, "num_key_value_heads": 1},
    "llama, tied and biased": {**LLAMA, "tie_word_embeddings": True, "attention_bias": True},
    "qwen": QWEN,
    "qwen, a dense layer": {**QWEN, "mlp_only_layers": [0], "attention_bias": True},
}
ARCHITECTURES = ("mixtral", "llama", "qwen")
LAYOUTS: dict[str, dict[str, Any]] = {
    "a tensor an expert": {},
    "fused": {"save_original_format": False},
}

every_family = pytest.mark.parametrize("family", FAMILIES)
two_or_four = pytest.mark.parametrize("count", [2, 4])


def spec_of(family: str) -> ModelSpec:
    return ModelSpec.from_config(FAMILIES[family])


def randomised(model: Decoder) -> Decoder:
    """Give norms and biases values of their own too, so that none can be lost unseen."""
    generator = torch.Generator().manual_seed(7)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.3)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a family's checkpoint, written once."""
    root = tmp_path_factory.mktemp("parallel")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            save_decoder(randomised(random_decoder(spec_of(family), seed=3)), root / family)
        return root / family

    return folder


class Neighbour(Rank):
    """A rank in a thread: sums are taken when all have come."""

    def __init__(self, number: int, table: list[Tensor], barrier: Barrier) -> None:
        super().__init__(number, barrier.parties)
        self.table, self.barrier = table, barrier

    def reduce(self, x: Tensor) -> Tensor:
        self.table[self.number] = x
        self.barrier.wait(timeout=10)
        total = torch.stack(self.table).sum(dim=0)
        self.barrier.wait(timeout=10)
        return total


def neighbours(count: int) -> list[Rank]:
    table, barrier = [torch.empty(0)] * count, Barrier(count)
    return [Neighbour(number, table, barrier) for number in range(count)]


def together(parts: list[Decoder], batcher: Any) -> list[Tensor]:
    """Return each rank's logits of a prefill beside a chunk, then of a decode beside the rest."""
    found: list[Tensor] = [torch.empty(0)] * len(parts)

    def run(number: int) -> None:
        model = parts[number]
        cache = PagedKvCache(model.spec, 32, 4)
        steps = batcher.step((0, 0, 8), (1, 0, 5)), batcher.step((0, 8, 9), (1, 5, 13), (2, 0, 7))
        found[number] = torch.cat([model(step, cache) for step in steps])

    torch.set_num_threads(1)  # of each
    threads = [Thread(target=run, args=(number,)) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@two_or_four
@every_family
def test_logits(family: str, count: int, folders: Any, batcher: Any) -> None:
    """All ranks have the logits of one rank, key heads divided or repeated, biases added once."""
    [whole] = together([load_decoder(folders(family))], batcher)
    parts = [load_decoder(folders(family), rank=rank) for rank in neighbours(count)]
    logits = together(parts, batcher)
    assert_close(logits[0], whole, atol=1e-4, rtol=1e-4)
    # The last bit too: a router that sees another token chooses other experts.
    assert all(torch.equal(each, logits[0]) for each in logits)


@two_or_four
@every_family
def test_random_weights(family: str, count: int, tmp_path: Path) -> None:
    """Ranks make their parts of what one rank makes of a seed: as read from its checkpoint."""
    spec = spec_of(family)
    save_decoder(random_decoder(spec, seed=5), tmp_path / "whole")
    for number in range(count):
        rank = Rank(number, count)
        made, read = random_decoder(spec, 5, rank=rank), load_decoder(tmp_path / "whole", rank=rank)
        assert_close(made.state_dict(), read.state_dict(), rtol=0, atol=0)


@every_family
def test_parts_make_up_the_whole(family: str, folders: Any) -> None:
    """Side by side, two ranks' parts of a tensor are the tensor; what is not divided is on both."""
    whole = places(load_decoder(folders(family)), fused=True)
    parts = [
        places(load_decoder(folders(family), rank=Rank(number, 2)), fused=True) for number in (0, 1)
    ]
    rows = ("q_proj.weight", "q_proj.bias", "gate_proj.weight", "up_proj.weight")
    columns = {"o_proj.weight": 1, "down_proj.weight": 1, "down_proj": 2}
    keys = ("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias")
    if spec_of(family).num_key_value_heads > 1:
        rows += keys
    for name, tensor in whole.items():
        halves = [part[name] for part in parts]
        axis = next((axis for end, axis in columns.items() if name.endswith(end)), None)
        if name.endswith(rows):
            assert_close(torch.cat(halves), tensor)
        elif name.endswith("gate_up_proj"):
            gates, ups = zip(*(half.chunk(2, dim=1) for half in halves), strict=True)
            assert_close(torch.cat([*gates, *ups], dim=1), tensor)
        elif axis is not None:
            assert_close(torch.cat(halves, dim=axis), tensor)
        elif name.endswith("o_proj.bias"):
            assert_close(torch.stack(halves).sum(dim=0), tensor)
        else:
            assert_close(halves, [tensor, tensor])


@two_or_four
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_bytes_of_a_rank(family: str, count: int) -> None:
    """Attention, experts and plain networks are divided, the two heads of keys repeated if need be.

    All else is on every rank: embedding, head, norms, routers.
    """
    spec = spec_of(family)
    parts = spec.parameters_by_part
    divided = parts["attention"] + parts["experts"] + parts["dense_ffn"]
    key_head = 2 * spec.num_hidden_layers * spec.hidden_size * spec.head_dim  # and its values'
    repeated = (count - spec.num_key_value_heads) * key_head
    held = 0
    for number in range(count):
        model = random_decoder(spec, 0, rank=Rank(number, count))
        held += sum(weight.numel() for weight in model.parameters())
        assert model.spec.kv_bytes_per_token == spec.kv_bytes_per_token // min(count, 2)
    assert held == count * (spec.parameters - divided) + divided + repeated


@pytest.mark.parametrize(
    ("changes", "count", "said"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 6}, 4, "heads 6; take 1 or 2 or 3"),
        ({"num_attention_heads": 12, "num_key_value_heads": 4}, 6, "num_key_value_heads 4 nor"),
        ({"intermediate_size": 50}, 4, "divide intermediate_size 50; take 1 or 2"),
        ({}, 8, "8 ranks do not divide num_attention_heads 4"),
    ],
)
def test_what_cannot_be_divided(changes: dict[str, int], count: int, said: str) -> None:
    spec = replace(spec_of("mixtral"), **changes)
    with pytest.raises(EngineError, match=f"^tensor_parallel: .*{said}"):
        Shard(spec, Rank(0, count), "meta")


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EngineError, match="4 ranks need a GPU each, and there are 2"), leading(4):
        pass


def test_more_ranks_than_a_node_has_devices() -> None:
    with pytest.raises(EngineError, match="9 ranks are more than the 8 devices"), leading(9, "cpu"):
        pass


def test_ranks_that_do_not_divide_the_model_are_never_started(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command refuses what config.json shows to be impossible."""
    monkeypatch.setattr(lead, "get_context", None)
    words = ["--model", str(checkpoint), "--prompt", "1", "--tensor-parallel", "1000"]
    done = CliRunner().invoke(cli.app, ["generate", *words])
    assert done.exit_code == 2
    assert "1000 ranks do not divide num_attention_heads 4; take 1 or 2 or 4" in done.stderr


@pytest.mark.parametrize(
    "batch",
    [
        Flat(),
        Flat(token_ids=[5], positions=[9], slots=[37], decodes=[[3, 9]], lengths=[10]),
        Flat(
            token_ids=[5, 6, 1, 2, 3, 4, 8],
            positions=[9, 0, 0, 1, 2, 6, 7],
            slots=[37, 4, 8, 9, 10, 2**40, 51],
            decodes=[[3, 7, 9], [1]],
            lengths=[10, 1],
            chunks=[(2, 3, 0, [2]), (5, 2, 6, [11, 12])],
            emit_rows=[0, 6, 1],
        ),
    ],
)
def test_packing(batch: Flat) -> None:
    """Batches of nothing, of a decode, and of decodes and chunks arrive as they were sent."""
    assert unpacked(packed(batch)) == batch


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `follow` meet nobody, and leave the signals to pytest."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(Meeting, "joined", lambda *_: nullcontext(torch.device("cpu")))


@pytest.mark.usefixtures("_in_this_process")
def test_a_rank_without_rank_0() -> None:
    """It says so and ends."""
    ours, theirs = Pipe()
    ours.close()
    with pytest.raises(SystemExit, match=r"^rank 1: rank 0 is gone; start again$"):
        follow(Rank(1, 2), NOWHERE, 2, theirs)


@pytest.mark.usefixtures("_in_this_process")
def test_a_rank_that_cannot_follow() -> None:
    """It tells rank 0 why and ends; that it started is no error."""
    ours, theirs = Pipe()
    leader = Leader(2, NOWHERE)
    leader.companions.append(Companion(1, get_context("spawn").Process(), ours))
    leader.tell("load", path="/nowhere", dtype=None, precision=None)
    with pytest.raises(SystemExit, match="1"):
        follow(Rank(1, 2), NOWHERE, 2, theirs)
    leader.hear()
    with pytest.raises(EngineError, match=r"^tensor_parallel: /nowhere.*: no such file"):
        leader.hear()


# From here on with processes. A pair that a test has broken is followed by a new one.


class Pair:
    """Two ranks, started when they are needed."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._leader: Leader | None = None

    @property
    def leader(self) -> Leader:
        if self._leader is None or self._leader.lost:
            self.close()
            self._leader = self._stack.enter_context(leading(2, "cpu"))
        return self._leader

    def close(self) -> None:
        self._leader = None
        self._stack.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture
def leader(pair: Pair) -> Leader:
    return pair.leader


def config_of(num_blocks: int = 64, **limits: Any) -> EngineConfig:
    given = {"max_num_seqs": 8, "max_batched_tokens": 16, "max_model_len": 64, **limits}
    return EngineConfig(limits=Limits(**given), num_blocks=num_blocks, block_size=4)


def served(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """Return the answers to prompts of which one comes in every other iteration."""
    for number, prompt in enumerate(prompts):
        record = Record(request_id=number, prompt_tokens=len(prompt), output_tokens=OUTPUT)
        assert engine.submit(record, prompt)
        engine.step()
        engine.step()
    while engine.step():
        pass
    return [engine.outputs[number] for number in range(len(prompts))]


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_tokens_of_checkpoints(
    family: str, layout: str, leader: Leader, prompts: list[list[int]], tmp_path: Path
) -> None:
    """Two processes answer as transformers does, read from either layout, batched and in chunks."""
    options = {key: value for key, value in FAMILIES[family].items() if key != "model_type"}
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(FAMILIES[family]["model_type"], **options, initializer_range=0.3)
    ).eval()
    theirs.save_pretrained(tmp_path / "model", **LAYOUTS[layout])
    model = leader.load(tmp_path / "model")
    assert isinstance(model, Shard)
    answers = generate(model, prompts, output_tokens=OUTPUT, max_batched_tokens=5)
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits = theirs(torch.tensor([prompt + answer])).logits[0]
        # The likeliest token after each that is read, from the prompt's last on.
        assert logits.argmax(dim=-1)[len(prompt) - 1 : -1].tolist() == answer


@pytest.mark.parametrize("swap_blocks", [0, 12])
def test_preemption(swap_blocks: int, leader: Leader, prompts: list[list[int]]) -> None:
    """Where blocks run out, sequences are computed again or swapped on both ranks alike."""
    spec = spec_of("qwen")
    config = config_of(num_blocks=12, swap_blocks=swap_blocks)
    alone = served(Engine(random_decoder(spec, seed=5), config_of()), prompts)
    engine = Engine(leader.make(spec, seed=5), config)
    assert served(engine, prompts) == alone
    frame = engine.ledger.frame()
    assert frame["preemptions"].sum() > 0
    assert bool(frame["swaps"].sum()) is bool(swap_blocks)


def test_cancelling(leader: Leader, prompts: list[list[int]]) -> None:
    """A request dropped while its blocks are swapped frees them on both ranks; others answer on.

    The swap space takes the blocks of one sequence: were they kept, the next could not be stored.
    """
    spec = spec_of("mixtral")
    alone = served(Engine(random_decoder(spec, seed=5), config_of()), prompts)
    engine = Engine(leader.make(spec, seed=5), config_of(num_blocks=12, swap_blocks=6))
    for number in (10, 11, 12):
        record = Record(request_id=number, prompt_tokens=13, output_tokens=30)
        assert engine.submit(record, prompts[1])
    while engine.runner.swap.free_blocks == 6:
        assert engine.step()
    engine.cancel(next(iter(engine.scheduler.waiting)).request_id)
    assert engine.runner.swap.free_blocks == 6
    assert served(engine, prompts) == alone
    assert engine.ledger.frame()["swaps"].sum() > 1


def test_styles_of_experts(leader: Leader, prompts: list[list[int]]) -> None:
    """The style that is told is taken; one that cannot be is refused before anybody follows."""
    spec = spec_of("mixtral")
    alone = served(Engine(random_decoder(spec, seed=5), config_of()), prompts)
    engine = Engine(leader.make(spec, seed=5), replace(config_of(), experts="dense"))
    assert served(engine, prompts) == alone


def test_an_engine_whose_ranks_are_taken(leader: Leader, prompts: list[list[int]]) -> None:
    model = leader.make(spec_of("llama"), seed=5)
    former, _ = Engine(model, config_of()), Engine(model, config_of())
    former.submit(Record(request_id=0, prompt_tokens=1, output_tokens=2), prompts[3])
    with pytest.raises(EngineError, match="another engine has taken these ranks"):
        former.step()


def test_service(leader: Leader, folders: Any, prompts: list[list[int]]) -> None:
    """A service serves the model that the ranks share."""
    hosting = Hosting(num_blocks=64, max_model_len=64, tensor_parallel=2)
    service = service_of({"tiny": folders("mixtral")}, hosting, leader=leader)
    engine = service.models["tiny"].worker.engine
    alone = Engine(load_decoder(folders("mixtral")), config_of())
    answers: list[list[int]] = [[], []]
    for number, each in enumerate((alone, engine)):
        record = Record(request_id=0, prompt_tokens=9, output_tokens=OUTPUT)

        def read(token: int, _: Any, answer: list[int] = answers[number]) -> bool:
            answer.append(token)
            return False

        each.submit(record, prompts[0], reader=read)
        while each.step():
            pass
    assert isinstance(engine.runner.model, Shard)
    assert answers[1] == answers[0]


def test_generate_command(leader: Leader, folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lead, "led", lambda ranks, _: nullcontext(leader if ranks == 2 else None))
    arguments = ["generate", "--model", str(folders("llama")), "--prompt", "5,6,7", "--json"]
    done = [CliRunner().invoke(cli.app, [*arguments, "--tensor-parallel", ranks]) for ranks in "12"]
    answers = [json.loads(each.output) for each in done]
    assert answers[0] == answers[1]
    assert len(answers[0][0]) == 16


def test_a_rank_that_dies(leader: Leader, prompts: list[list[int]]) -> None:
    """Killed between two iterations, it ends the next one in one line, and every later one."""
    engine = Engine(leader.make(spec_of("mixtral"), seed=5), config_of())
    engine.submit(Record(request_id=0, prompt_tokens=9, output_tokens=20), prompts[0])
    engine.step()
    engine.step()
    [companion] = leader.companions
    assert companion.process.pid
    os.kill(companion.process.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(EngineError, match=r"^tensor_parallel: rank 1 .*code -9; start again$"):
            engine.step()


def test_a_rank_that_hangs(
    pair: Pair, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for no longer than told, in a sum or while it takes no order in; then ended."""
    monkeypatch.setattr(lead, "SILENCE_S", 0.1)
    pair.close()
    with leading(2, "cpu", patience_s=1.0) as leader:
        engine = Engine(leader.make(spec_of("mixtral"), seed=5), config_of())
        engine.submit(Record(request_id=0, prompt_tokens=9, output_tokens=20), prompts[0])
        [companion] = leader.companions
        assert companion.process.pid
        os.kill(companion.process.pid, signal.SIGSTOP)
        with pytest.raises(EngineError, match=r"^tensor_parallel: rank 0 lost the others"):
            engine.step()
        with pytest.raises(EngineError, match=r"^tensor_parallel: a rank does not answer"):
            leader.tell("load", path="x" * 10_000_000)
    assert companion.process.exitcode == -signal.SIGKILL


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_two_gpus(pair: Pair, family: str, prompts: list[list[int]]) -> None:
    """Over NCCL two GPUs answer as one does."""
    pair.close()
    spec = spec_of(family)
    alone = served(Engine(random_decoder(spec, 5, "cuda"), config_of()), prompts)
    with leading(2, "cuda") as leader:
        assert served(Engine(leader.make(spec, seed=5), config_of()), prompts) == alone
