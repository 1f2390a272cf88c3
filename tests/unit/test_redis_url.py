"""What messages show of a Redis: never what its URL says of a user."""

import pytest

from hiveio.redis import Redis


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:1", "host:1"),
        ("rediss://ada:hunter2@host:1/2?ssl_ca_certs=/ca", "host:1/2"),
        ("redis://host:1/0?password=hunter2", "host:1/0"),
        ("unix://ada:hunter2@/run/redis.sock?db=1", "/run/redis.sock"),
    ],
)
async def test_a_redis_is_shown_without_secrets(url: str, shown: str) -> None:
    assert Redis(url).shown == shown
