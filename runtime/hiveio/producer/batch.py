"""Other forms of a message than one JSON envelope: batches, streamed with bounded memory, and CloudEvents."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from hiveio.envelope import Codec, Envelope, Outcome
from hiveio.errors import Problem, RequestTimeout, TooLarge, Unavailable
from hiveio.fault import log_fault
from hiveio.http.body import discard
from hiveio.http.edge import Gone
from hiveio.http.problem import encode_problem
from hiveio.http.request_headers import check_media_type
from hiveio.producer import cloudevents
from hiveio.producer.keys import Claim
from hiveio.producer.publishing import Publishing, Submission
from hiveio.producer.split import Item, Items, Lines, Splitter
from hiveio.service import Service

MOST_RECORDS = 100_000  # in a batch: their answers are held until it has come in
CHUNK = 250  # records that are taken before others get their turn
WINDOW = 4  # chunks of a batch that are on their way to Kafka
LONGEST = 10  # times REQUEST_TIMEOUT: a batch that takes longer is cut

NDJSON = b"application/x-ndjson"
_FAULT = encode_problem(Problem())

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

log = logging.getLogger("hiveio.http")


class Form(NamedTuple):
    """``split`` is None for a single message; ``action`` makes the envelope of a record that has another form."""

    split: type[Splitter] | None = None
    action: Callable[[bytes, Mapping[bytes, bytes]], bytes] | None = None
    media_type: bytes = b"application/json"  # of the answer


class Intake:
    """The forms in which a producer's route takes messages, besides one JSON envelope.

    - A JSON array, NDJSON (``application/x-ndjson``), CloudEvents in batch mode: a batch. Each record is taken, in
      order, as it would be alone, and answered in its place: ``{"status": 200, "position": "<topic>/<p>/<offset>"}``,
      or its problem document. 200 when all is well, else 207. BODY_LIMIT bounds a record, BATCH_LIMIT the batch.
      Where the rest of a batch is not read, its last answer is a problem with ``"rest": true``; what came before
      stands. An Idempotency-Key counts for record ``n`` (from 0) as ``<key>/<n>``.
    - CloudEvents in structured and binary mode: one message. The attributes become its meta.
    """

    def __init__(self, service: Service, codec: Codec, publishing: Publishing) -> None:
        settings = service.settings
        self._service, self._codec, self._publishing = service, codec, publishing
        self._limit, self._batch_limit = settings.body_limit, settings.batch_limit
        self._timeout_s = settings.request_timeout_ms / 1000
        self._done = b'{"status":%d' % (202 if settings.producer_ack == "queued" else 200)
        structured = partial(cloudevents.from_structured, names=codec.types.keys())
        self._binary = Form(action=partial(cloudevents.from_binary, names=codec.types.keys()))
        self._array = Form(Items)
        self._forms = {
            NDJSON: Form(Lines, media_type=NDJSON),
            b"application/cloudevents+json": Form(action=structured),
            b"application/cloudevents-batch+json": Form(Items, structured),
        }

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

    async def take(
        self,
        form: Form,
        message: MutableMapping[str, Any],
        receive: Receive,
        headers: Mapping[bytes, bytes],
        common: Envelope,
        touch: Callable[[], None],
    ) -> tuple[int, bytes]:
        """Status and body of the answer to a batch of which ``message`` is the first part.

        ``common`` has what all records have in common; ``touch`` is called while there is progress. Raises TooLarge
        before anything is taken where Content-Length says so, and Gone.
        """
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._batch_limit:
            raise self._too_large()
        answers: list[bytes] = []
        waiting: deque[list[Submission | bytes]] = deque()
        taken, gone = 0, False
        try:
            async for items in self._items(form, message, receive, touch):
                waiting.append(await self._submit(items, form, headers, common, taken))
                taken += len(items)
                if len(waiting) >= WINDOW:
                    first = waiting.popleft()
                    answers += await self._answers(first, touch)
                    if isinstance(first[-1], Submission):
                        await self._publishing.pace(first[-1])
                await asyncio.sleep(0)
        except Problem as problem:
            problem.members["rest"] = True
            waiting.append([encode_problem(problem)])
        except Gone:
            gone = True
        for chunk in waiting:
            answers += await self._answers(chunk, touch)
        if gone:  # what it sent is carried out, and its keys are settled
            raise Gone
        body = b"\n".join([*answers, b""]) if form.media_type == NDJSON else b"[%b]" % b",".join(answers)
        return 200 if all(answer.startswith(self._done) for answer in answers) else 207, body

    async def _items(
        self, form: Form, message: MutableMapping[str, Any], receive: Receive, touch: Callable[[], None]
    ) -> AsyncIterator[list[Item]]:
        """The records of the body, as they come, at most CHUNK at once. Raises a Problem where the rest is not read."""
        assert form.split is not None
        splitter = form.split(self._limit)
        until = monotonic() + LONGEST * self._timeout_s
        size = count = 0
        chunk: list[Item] = []
        more = True
        try:
            while more:
                if message["type"] == "http.disconnect":
                    raise Gone
                part, more = message.get("body", b""), message.get("more_body", False)
                if (size := size + len(part)) > self._batch_limit:
                    raise self._too_large()
                for item in _split(splitter, part, last=not more):
                    if (count := count + 1) > MOST_RECORDS:
                        raise TooLarge(f"the batch has more than {MOST_RECORDS} records")
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
                    raise Unavailable("this instance is shutting down")
                if monotonic() > until:
                    raise RequestTimeout(f"the batch took longer than {LONGEST} times REQUEST_TIMEOUT")
                touch()
                async with asyncio.timeout(self._timeout_s * 0.9):
                    message = await receive()
        except TimeoutError:  # the chunk is empty: it is given on before more is awaited
            raise RequestTimeout("the rest did not arrive in time") from None
        except Problem:
            if chunk:
                yield chunk
            if more:
                await discard(receive)  # most clients look for an answer when they have sent everything
            raise

    async def _submit(
        self, items: list[Item], form: Form, headers: Mapping[bytes, bytes], common: Envelope, taken: int
    ) -> list[Submission | bytes]:
        """On their way, in their order; or the problem document."""
        envelopes = [self._envelope(item, form, headers, common, index) for index, item in enumerate(items, taken)]
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
                submitted.append(encode_problem(problem))
            except Exception as error:
                place = taken + len(submitted)
                of = None if isinstance(envelope, Problem) else envelope
                log_fault(log, error, self._publishing.contract, of, record=place)
                submitted.append(_FAULT)
        return submitted

    def _envelope(
        self, item: Item, form: Form, headers: Mapping[bytes, bytes], common: Envelope, index: int
    ) -> Envelope | Problem:
        try:
            if isinstance(item, Problem):
                return item
            body = item if form.action is None else form.action(item, headers)
            message, meta = self._codec.decode(body)
        except Problem as problem:
            return problem
        key = None if common.key is None else f"{common.key}/{index}"
        return Envelope(message=message, id=common.id, meta=meta, key=key, body=body, headers=common.headers)

    async def _claim(self, envelope: Envelope | Problem) -> Claim | Outcome | None:
        return None if isinstance(envelope, Problem) else await self._publishing.claim(envelope)

    async def _answers(self, chunk: list[Submission | bytes], touch: Callable[[], None]) -> list[bytes]:
        touch()
        if any(isinstance(each, Submission) and each.claim is not None for each in chunk):
            return await asyncio.gather(*(self._answer(each) for each in chunk))  # each tells Redis
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
        return TooLarge(f"the batch has more than {self._batch_limit} bytes")


def _split(splitter: Splitter, part: bytes, *, last: bool) -> Iterator[Item]:
    yield from splitter.feed(part)
    if last:
        yield from splitter.close()
