"""What is going on: scopes, groups, dead letters, quarantined aggregates and instances, seen from outside."""

from hiveio.status.collector import Collector
from hiveio.status.model import Status

__all__ = ["Collector", "Status"]
