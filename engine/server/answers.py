"""The answers to one HTTP request on the event loop: let in, read token by token, let go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive

from engine.serve.sampling import Sampling
from engine.server.errors import ApiError, ClientGoneError
from engine.server.protocol import ChatRequest, CompletionRequest
from engine.server.service import ServedModel, Service
from engine.server.transcript import Ending, Transcript
from engine.server.worker import Job, Letters, Piece
from moesim.serving.records import Record

TOO_LONG = "context_length_exceeded"


class Answers:
    """The prompts of one request in the hands of a worker.

    They hold their seats until `close`, which cancels what has not ended.
    """

    def __init__(self, service: Service, model: ServedModel, jobs: list[Job]) -> None:
        self._service = service
        self._model = model
        self._letters = jobs[0].letters
        self._open = {job.index: job.request_id for job in jobs}
        self._seats = len(jobs)
        self._take_seats(jobs)
        service.open.add(self)
        try:
            for job in jobs:
                model.worker.submit(job)
        except ApiError:
            self.close()
            raise

    async def next(self) -> list[Piece]:
        """Return the tokens that have come since the last call, at least one; none at the end.

        Raises ApiError where the engine has failed, ClientGoneError where nobody reads any more.
        """
        if not self._open:
            return []
        letters = [await self._letters.get()]
        while not self._letters.empty():
            letters.append(self._letters.get_nowait())
        pieces = [_opened(letter) for letter in letters]
        for piece in pieces:
            if piece.written.finish:
                del self._open[piece.index]
        return pieces

    @asynccontextmanager
    async def attended(self, receive: Receive) -> AsyncIterator[None]:
        """Notice a client that leaves, and let go of everything at the end."""
        watch = asyncio.create_task(self._watch(receive))
        try:
            yield
        finally:
            watch.cancel()
            self.close()

    def dismiss(self, why: ApiError) -> None:
        """End the answer with an error, after the tokens that have come already."""
        self._letters.put_nowait(why)

    def close(self) -> None:
        """Cancel what has not ended, and leave the seats."""
        for request_id in self._open.values():
            self._model.worker.cancel(request_id)
        self._open.clear()
        self._model.leave_seats(self._seats)
        self._seats = 0
        self._service.open.discard(self)

    def _take_seats(self, jobs: list[Job]) -> None:
        try:
            self._model.take_seats(len(jobs))
        except ApiError as full:
            for job in jobs:
                self._service.refused(job.record, str(full))
            raise

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._letters.put_nowait(ClientGoneError())


def _opened(letter: Piece | Exception) -> Piece:
    if isinstance(letter, Exception):
        raise letter
    return letter


def jobs_of(
    service: Service,
    model: ServedModel,
    request: CompletionRequest | ChatRequest,
    prompts: list[list[int]],
    arrival_s: float,
) -> list[Job]:
    """Return a request's prompts as jobs; ApiError where one can never be answered."""
    letters: Letters = asyncio.Queue()
    jobs = []
    for index, prompt in enumerate(prompts):
        ending = _ending(request, model, len(prompt))
        record = Record(
            request_id=service.next_id(),
            tenant=request.user,
            model=model.name,
            replica=f"{model.name}/0",
            arrival_s=arrival_s,
            prompt_tokens=len(prompt),
            output_tokens=ending.max_tokens,
        )
        reason = model.worker.engine.refusal(record, prompt)
        if reason:
            service.refused(record, reason)
            too_long = len(prompt) + ending.max_tokens > model.max_model_len
            code = TOO_LONG if too_long else None
            raise ApiError(400, f"{_field(request)}: {reason}", param=_field(request), code=code)
        jobs.append(
            Job(
                index=index,
                record=record,
                prompt=prompt,
                sampling=_sampling(request),
                transcript=Transcript(model.tokeniser, ending),
                letters=letters,
            )
        )
    return jobs


def _field(request: CompletionRequest | ChatRequest) -> str:
    return "messages" if isinstance(request, ChatRequest) else "prompt"


def _ending(request: CompletionRequest | ChatRequest, model: ServedModel, length: int) -> Ending:
    return Ending(
        max_tokens=_most_tokens(request, max(1, model.max_model_len - length)),
        eos=frozenset() if request.ignore_eos else model.tokeniser.eos,
        tokens=frozenset(request.stop_token_ids),
        texts=request.stop,
        shown=request.include_stop_str_in_output,
    )


def _most_tokens(request: CompletionRequest | ChatRequest, room: int) -> int:
    if isinstance(request, ChatRequest):
        return request.max_completion_tokens or request.max_tokens or room
    return request.max_tokens


def _sampling(request: CompletionRequest | ChatRequest) -> Sampling:
    if isinstance(request, ChatRequest):
        logprobs = request.top_logprobs if request.logprobs else None
    else:
        logprobs = request.logprobs
    return Sampling(
        temperature=request.temperature, top_p=request.top_p, seed=request.seed, logprobs=logprobs
    )
