"""Other forms of a message than one JSON envelope: batches, streamed with bounded memory, and CloudEvents."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from time import monotonic
from typing import NamedTuple

from hiveio import cloudevents
from hiveio.envelope import Codec, Envelope, Outcome
from hiveio.errors import Problem, RequestTimeout, TooLarge, Unavailable, detached
from hiveio.fault import log_fault
from hiveio.http.body import discard
from hiveio.http.intake import ClientDisconnected, Form
from hiveio.http.problem import encode_problem
from hiveio.http.request_headers import check_media_type
from hiveio.http.response import JSON, Response
from hiveio.producer.keys import Claim
from hiveio.producer.publishing import Publishing, Submission
from hiveio.producer.split import Item, Items, Lines, Splitter
from hiveio.service import Service
from hiveio.types import Message, Receive

MAX_RECORDS = 100_000  # in a batch; their answers are kept until all of it has come in
CHUNK = 250  # records that are handled before other requests get their turn
WINDOW = 4  # chunks of a batch that are in flight to Kafka
MAX_TIMEOUTS = 10  # a batch that takes longer than this many times REQUEST_TIMEOUT is ended

NDJSON = b"application/x-ndjson"
_FAULT = encode_problem(Problem())

logger = logging.getLogger("hiveio.http")


class Layout(NamedTuple):
    """The format of a batch: what finds its records, what makes envelopes of them, the media type of the response."""

    splitter: type[Splitter]
    envelope: Callable[[bytes, Mapping[bytes, bytes]], bytes] | None = None
    media_type: bytes = JSON


class Intake:
    """The forms in which a producer's route accepts messages, in addition to one JSON envelope.

    - A JSON array, NDJSON (``application/x-ndjson``), CloudEvents in batch mode: a batch. Each record is handled, in
      order, as it would be alone, and answered in order: ``{"status": 200, "position": "<topic>/<p>/<offset>"}``,
      or its problem document. 200 if all succeed, else 207. BODY_LIMIT bounds a record, BATCH_LIMIT the batch.
      If the rest of a batch is not read, its last answer is a problem with ``"rest": true``; what came before it is
      handled. The Idempotency-Key of record ``n`` (from 0) is ``<key>/<n>``.
    - CloudEvents in structured and binary mode: one message. The attributes become its meta.
    """

    def __init__(self, service: Service, codec: Codec, publishing: Publishing) -> None:
        settings = service.settings
        self._service, self._codec, self._publishing = service, codec, publishing
        self._limit, self._batch_limit = settings.body_limit, settings.batch_limit
        self._timeout_s = settings.request_timeout_ms / 1000
        self._done = b'{"status":%d' % (202 if settings.producer_ack == "queued" else 200)
        structured = partial(cloudevents.from_structured_request, names=codec.types.keys())
        self._binary = Form(partial(cloudevents.from_binary_request, names=codec.types.keys()))
        self._array = self._batch(Layout(Items))
        self._forms = {
            NDJSON: self._batch(Layout(Lines, media_type=NDJSON)),
            b"application/cloudevents+json": Form(structured),
            b"application/cloudevents-batch+json": self._batch(Layout(Items, structured)),
        }

    def _batch(self, layout: Layout) -> Form:
        return Form(take_batch=partial(self._take, layout))

    def form(self, headers: Mapping[bytes, bytes], start: bytes) -> Form | None:
        """The form of a body that starts like this; None for one JSON envelope. Raises UnsupportedMediaType."""
        media_type = headers.get(b"content-type", b"application/json")
        if media_type == b"application/json" and start[:1] == b"{" and b"ce-specversion" not in headers:
            return None
        kind, _, parameters = media_type.partition(b";")
        form = self._forms.get(kind.strip().lower())
        check_media_type(media_type if form is None else b"application/json;" + parameters)
        if form is None and b"ce-specversion" in headers:
            return self._binary
        return self._array if form is None and start.lstrip()[:1] == b"[" else form

    async def _take(
        self,
        layout: Layout,
        first: Message,
        receive: Receive,
        headers: Mapping[bytes, bytes],
        common: Envelope,
        progressed: Callable[[], None],
    ) -> Response:
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._batch_limit:
            raise self._too_large()
        answers: list[bytes] = []
        waiting: deque[list[Submission | bytes]] = deque()
        received, disconnected = 0, False
        try:
            async for items in self._items(layout, first, receive, progressed):
                waiting.append(await self._submit(items, layout, headers, common, received))
                received += len(items)
                if len(waiting) >= WINDOW:
                    oldest = waiting.popleft()
                    answers += await self._answers(oldest, progressed)
                    if isinstance(oldest[-1], Submission):
                        await self._publishing.pace(oldest[-1])
                await asyncio.sleep(0)
        except Problem as problem:
            problem.members["rest"] = True
            waiting.append([encode_problem(problem)])
        except ClientDisconnected:
            disconnected = True
        for chunk in waiting:
            answers += await self._answers(chunk, progressed)
        if disconnected:  # what it sent is carried out, and the answers of its keys are kept
            raise ClientDisconnected
        body = b"\n".join([*answers, b""]) if layout.media_type == NDJSON else b"[%b]" % b",".join(answers)
        status = 200 if all(answer.startswith(self._done) for answer in answers) else 207
        return Response(status, [(b"content-type", layout.media_type)], body)

    async def _items(
        self, layout: Layout, message: Message, receive: Receive, progressed: Callable[[], None]
    ) -> AsyncIterator[list[Item]]:
        """The records of the body, as they come, at most CHUNK at once. Raises a Problem if the rest is not read."""
        splitter = layout.splitter(self._limit)
        until = monotonic() + MAX_TIMEOUTS * self._timeout_s
        size = count = 0
        chunk: list[Item] = []
        more = True
        try:
            while more:
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                part, more = message.get("body", b""), message.get("more_body", False)
                if (size := size + len(part)) > self._batch_limit:
                    raise self._too_large()
                for item in _split(splitter, part, last=not more):
                    if (count := count + 1) > MAX_RECORDS:
                        raise TooLarge(f"The batch has more than {MAX_RECORDS} records.")
                    chunk.append(item)
                    if len(chunk) == CHUNK:
                        yield chunk
                        chunk = []
                if chunk:
                    yield chunk
                    chunk = []
                if not more:
                    return
                if self._service.draining:
                    raise Unavailable("This instance is shutting down. Try again.")
                if monotonic() > until:
                    raise RequestTimeout(f"The batch took longer than {MAX_TIMEOUTS} times REQUEST_TIMEOUT.")
                progressed()
                async with asyncio.timeout(self._timeout_s * 0.9):
                    message = await receive()
        # The chunk is empty: it was yielded before more was awaited. A loop that had no CPU for long finds that the
        # time of the request itself is over in the same turn.
        except (TimeoutError, asyncio.CancelledError):
            raise RequestTimeout("The rest of the batch did not arrive in time.") from None
        except Problem:
            if chunk:
                yield chunk
            if more:
                await discard(receive)  # most clients read the answer after they have sent everything
            raise

    async def _submit(
        self, items: list[Item], layout: Layout, headers: Mapping[bytes, bytes], common: Envelope, received: int
    ) -> list[Submission | bytes]:
        """Submit the records in their order; for one that is refused, its problem document."""
        envelopes = [self._envelope(item, layout, headers, common, index) for index, item in enumerate(items, received)]
        claims: list[Claim | Outcome | BaseException | None] = [None] * len(items)
        if common.key is not None:
            claims = await asyncio.gather(*(self._claim(each) for each in envelopes), return_exceptions=True)
        submitted: list[Submission | bytes] = []
        for envelope, claim in zip(envelopes, claims, strict=True):
            try:
                if isinstance(envelope, Problem):
                    raise envelope
                if isinstance(claim, BaseException):
                    raise claim
                submitted.append(await self._publishing.submit(envelope, claim, gather=True))
            except Problem as problem:
                submitted.append(encode_problem(detached(problem)))
            except Exception as error:
                index = received + len(submitted)
                of = None if isinstance(envelope, Problem) else envelope
                log_fault(logger, error, self._publishing.contract, of, record=index)
                detached(error)
                submitted.append(_FAULT)
        return submitted

    def _envelope(
        self, item: Item, layout: Layout, headers: Mapping[bytes, bytes], common: Envelope, index: int
    ) -> Envelope | Problem:
        try:
            if isinstance(item, Problem):
                return item
            body = item if layout.envelope is None else layout.envelope(item, headers)
            message, meta = self._codec.decode(body)
        except Problem as problem:
            return detached(problem)
        key = None if common.key is None else f"{common.key}/{index}"
        return Envelope(
            message=message,
            id=common.id,
            meta=meta,
            key=key,
            body=body,
            headers=common.headers,
            identity=common.identity,
        )

    async def _claim(self, envelope: Envelope | Problem) -> Claim | Outcome | None:
        return None if isinstance(envelope, Problem) else await self._publishing.claim(envelope)

    async def _answers(self, chunk: list[Submission | bytes], progressed: Callable[[], None]) -> list[bytes]:
        progressed()
        if any(isinstance(each, Submission) and each.claim is not None for each in chunk):
            return await asyncio.gather(*(self._answer(each) for each in chunk))  # each writes to Redis
        return [await self._answer(each) for each in chunk]

    async def _answer(self, submitted: Submission | bytes) -> bytes:
        if isinstance(submitted, bytes):
            return submitted
        try:
            outcome = await self._publishing.settled(submitted)
        except Problem as problem:
            return encode_problem(problem)
        position = outcome.headers.get("Hive-Position")
        return self._done + (b"}" if position is None else b',"position":"%b"}' % position.encode())

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The batch has more than {self._batch_limit} bytes.")


def _split(splitter: Splitter, part: bytes, *, last: bool) -> Iterator[Item]:
    yield from splitter.feed(part)
    if last:
        yield from splitter.close()
