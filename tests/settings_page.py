"""Writes the tables of docs/settings.md from the settings in the code: ``make docs``. A test compares the two."""

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from hiveio.config import Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
MARK = "<!-- `make docs` writes what follows -->\n"
# Each setting belongs to one group, named after the roles that read it.
GROUPS = {
    "Every role": (
        "ACTOR_MODULE", "ACTOR_PATH", "BIND", "PORT", "ADMIN_PORT", "CLUSTER_SIZE", "HTTP_VERSION", "SECURE",
        "SSL_CERT", "SSL_KEY", "PING_URL", "BODY_LIMIT", "REQUEST_TIMEOUT", "DRAIN_TIMEOUT", "AUTH_JWKS_URL",
        "AUTH_ISSUER", "AUTH_AUDIENCE", "TELEMETRY", "TELEMETRY_SERVICE_NAME", "TELEMETRY_URL_TRACES",
        "TELEMETRY_URL_METRICS",
    ),
    "Producer, consumer and stream processor": (
        "EVENT_STORE_BROKERS", "EVENT_STORE_TOPIC", "EVENT_STORE_ID", "EVENT_STORE_REPLICATION", "EVENT_STORE_BUFFER",
    ),
    "Producer and stream processor": (
        "EVENT_STORE_PRODUCER_TOPIC", "EVENT_STORE_PARTITIONS", "CACHE_URL", "IDEMPOTENCY_TIME", "EVENT_HEADERS",
    ),
    "Consumer and stream processor": ("IDEMPOTENCY_COUNT",),
    "Producer": ("EVENT_STORE_TIMEOUT", "PRODUCER_ACK", "EVENT_FORMAT", "BATCH_LIMIT"),
    "Consumer": (
        "EVENT_STORE_CONSUMER_TOPIC", "EVENT_STORE_GROUP_ID", "EVENT_STORE_FROM_START", "CONSUMER_CONCURRENCY",
        "CONSUMER_ATTEMPTS", "CONSUMER_BACKOFF", "CONSUMER_BACKOFF_LIMIT", "CONSUMER_TIMEOUT", "CONSUMER_PARKED",
    ),
    "Stream processor": (
        "LOCK_URLS", "LOCK_TTL", "LOCK_DRIFT_FACTOR", "LOCK_RETRY_COUNT", "LOCK_RETRY_DELAY", "LOCK_RETRY_JITTER",
        "EVENT_STORE_MISPLACED", "COMMAND_TOPICS", "COMMAND_URLS", "COMMAND_WINDOW",
    ),
}  # fmt: skip
KAFKA = "| `KAFKA_<NAME>` | | Any property of librdkafka: `KAFKA_SASL_MECHANISM` sets `sasl.mechanism`. |\n"


def page() -> str:
    """The page as of today. Raises KeyError for a setting in ``GROUPS`` that is not there."""
    found = {f.metadata["name"]: f for f in fields(Settings) if f.metadata}
    parts = [PAGE.read_text("utf-8").partition(MARK)[0], MARK]
    for group, names in GROUPS.items():
        rows = [_row(found.pop(name)) for name in names]
        parts.append(f"\n## {group}\n| setting | default | what it is |\n| --- | --- | --- |\n{''.join(rows)}")
        if "EVENT_STORE_BROKERS" in names:
            parts.append(KAFKA)
    if found:
        raise ValueError(f"tests/settings_page.py has no group for {', '.join(found)}")
    return "".join(parts)


def _row(f: Field[Any]) -> str:
    default = f.metadata["shown"] or (f.default if f.default is not MISSING else "")
    default = "" if default in ("", ()) else str(default).lower() if isinstance(default, bool) else default
    return f"| `{f.metadata['name']}` | {default} | {f.metadata['text']} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
