"""Redis: a single server, the master that Sentinels name, or a cluster. Scripts whose calls travel together.

The only package that imports redis.
"""

from hiveio.redis.client import Redis, Refusal
from hiveio.redis.connecting import connect
from hiveio.redis.script import Argument, Script

__all__ = ["Argument", "Redis", "Refusal", "Script", "connect"]
