"""The properties of a client that is a member of a consumer group."""

from typing import Any

from hiveio.config import Settings
from hiveio.kafka.client import client_config


def member_config(settings: Settings) -> dict[str, Any]:
    """Without callbacks. Raises ConfigError."""
    protocol = settings.kafka.get("group.protocol", "consumer").lower()
    own = {"partition_assignment_strategy": "cooperative-sticky"} if protocol == "classic" else {}
    config = client_config(
        settings,
        group_protocol=protocol,
        topic_metadata_refresh_interval_ms=10_000,
        # As much as is handled in a tenth of a second; by default librdkafka keeps 100,000 records of a partition,
        # and then asks for no more for a whole second, in which a fast consumer runs dry.
        queued_min_messages=10_000,
        fetch_queue_backoff_ms=10,
        **own,
    )
    return config | {
        "group.id": settings.group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",  # where to begin is decided on assign; later, a lost offset is a failure
    }
