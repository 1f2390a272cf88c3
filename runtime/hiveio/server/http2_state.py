"""The state of an HTTP/2 connection on h2, and which of its messages are malformed: RFC 9113, section 8.1.1."""

import re

from h2 import events
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import InvalidBodyLengthError, ProtocolError
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame

from hiveio.http.body import ONLY_IN_HEAD, NotHttp
from hiveio.types import Fields

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH = re.compile(rb"/[\x21\x22\x24-\x7e\x80-\xff]*")


class State(H2Connection):
    """h2's, in which an error of one stream does not end the connection with the requests of everybody else."""

    MAX_CLOSED_STREAMS = 4_096

    @property
    def open_inbound_streams(self) -> int:
        # We refuse a stream too many, and the client may repeat it. h2 would end the connection with all its requests.
        super().open_inbound_streams  # noqa: B018 - it forgets streams that are closed
        return 0

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[events.Event]]:
        # The client opens no more streams, and waits for the answers that it is owed. h2 would drop them.
        return [], []

    def _receive_frame(self, frame: Frame) -> list[events.Event]:
        try:
            return super()._receive_frame(frame)
        except ProtocolError as error:
            if not self._malformed(frame, error):
                raise
        self.reset_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
        if isinstance(frame, DataFrame):
            self.acknowledge_received_data(frame.flow_controlled_length, frame.stream_id)
        return [events.StreamReset(stream_id=frame.stream_id, error_code=ErrorCodes.PROTOCOL_ERROR, remote_reset=False)]

    def _malformed(self, frame: Frame, error: ProtocolError) -> bool:
        """Whether the frame is allowed and only its message is wrong, which is an error of its stream."""
        stream = self.streams.get(frame.stream_id)
        return (
            isinstance(frame, HeadersFrame | DataFrame)
            and type(error) in (ProtocolError, InvalidBodyLengthError)
            and error.__cause__ is None  # headers that cannot be decoded leave the connection without its table
            and stream is not None
            and stream.open
        )


def split(headers: Fields) -> tuple[bytes, bytes, Fields]:
    """The method, the target and the fields of a request, with its authority as Host. Raises NotHttp."""
    special = {name: value for name, value in headers if name[:1] == b":"}
    fields = [(bytes(name), bytes(value)) for name, value in headers if name[:1] != b":"]
    if (authority := special.get(b":authority")) is not None:
        fields = [(b"host", authority), *(field for field in fields if field[0] != b"host")]
    method = special[b":method"]
    if method == b"CONNECT":
        raise NotHttp(501, "CONNECT is not implemented, because this service is not a proxy.")
    if not _TOKEN.fullmatch(method):
        raise NotHttp(400, "The method of the request is not a valid token.")
    target = special[b":path"]
    if not _PATH.fullmatch(target) and (method, target) != (b"OPTIONS", b"*"):
        text = "The target of a request must be a path that begins with /, without spaces or a fragment (#)."
        raise NotHttp(400, text)
    return method, target, fields


def length(fields: Fields) -> int | None:
    """The Content-Length, which h2 has found to be a number."""
    return next((int(value) for name, value in fields if name == b"content-length"), None)


def is_trailer(fields: Fields) -> bool:
    """Whether these may follow a body."""
    return not any(name in ONLY_IN_HEAD for name, _ in fields)
