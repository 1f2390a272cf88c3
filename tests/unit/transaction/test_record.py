"""What a log may hold that is no record of this version."""

import pytest

from hiveio.errors import Corrupt
from hiveio.transaction.record import FORMAT, Foreign, Format, Upgrade, decode, encode
from hiveio.transaction.rule import ReferenceFold


@pytest.mark.parametrize(
    "value",
    [b"", b"\xff{", b"null", b"[1,2]", b"{", b"{}", b'{"type":"Opened","payload":{}}', b'"kind"', b"[" * 100_000, b" "],
)
def test_bytes_that_are_no_object_with_a_kind_are_void_for_every_reader(value: bytes) -> None:
    record = decode(value)
    assert isinstance(record, Foreign)
    assert ReferenceFold().append("", record) is False


@pytest.mark.parametrize(
    "value",
    [
        b'{"kind":"prepare"}',
        b'{"kind":7}',
        b'{"kind":"commit"}',
        b'{"kind":"barrier","aggregates":5}',
        b'{"kind":"commit","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        encode(Format(FORMAT + 1, 1, "crc32", 1, 1)),
        encode(Upgrade(FORMAT + 1)),
        b'{"kind":"upgrade"}',
    ],
)
def test_what_a_newer_version_may_have_written_stops_the_reader(value: bytes) -> None:
    with pytest.raises(Corrupt, match="newer"):
        decode(value)
