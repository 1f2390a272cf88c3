"""Parsers of settings: each makes a value of a text, or raises. The docstring of a parser says what it takes."""

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

# What only the runtime itself writes into records, and secrets, which do not belong on a topic.
_OWN = ("hive-", "ce_", "content-type", "traceparent", "tracestate")
_SECRET = ("authorization", "proxy-authorization", "cookie")


def cpu_quota() -> int:
    """Whole CPUs that the cgroup and the affinity mask allow, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # cgroup 2, cgroup 1
        try:
            quota, period = (int(w) for name in names for w in Path("/sys/fs/cgroup", name).read_text().split())
        except (OSError, ValueError):  # not this version, or "max"
            continue
        if quota > 0:
            allowed = min(allowed, quota // period)
    return max(1, allowed)


def whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    parse.__doc__ = f"a whole number from {low} to {high}"
    return parse


def fraction(text: str) -> float:
    """a number from 0 to 1"""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    parse.__doc__ = " or ".join(words)
    return parse


def flag(text: str) -> bool:
    """true or false"""
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def any_text(text: str) -> str:
    """any text"""
    return text


def topic_name(text: str) -> str:
    """a topic name: 1 to 220 of a-z A-Z 0-9 . _ -"""
    if not re.fullmatch(r"[a-zA-Z0-9._-]{1,220}", text):
        raise ValueError
    return text


def topic_names(text: str) -> tuple[str, ...]:
    """a topic name, a comma-separated list of them, or ^regex"""
    if text.startswith("^"):
        re.compile(text)
        return (text,)
    return tuple(topic_name(name.strip()) for name in text.split(","))


def http_url(text: str) -> str:
    """a URL http://host:port/path or https://"""
    if not re.match(r"https?://[^/]", text) or urlsplit(text).port == 0:
        raise ValueError
    return text


def keys_url(text: str) -> str:
    """a URL http://host:port/path or https://, of ASCII characters without spaces, and without a user"""
    if not re.fullmatch(r"[!-~]+", http_url(text)) or "@" in urlsplit(text).netloc:
        raise ValueError  # it would be asked for in vain, again and again
    return text


def header_names(text: str) -> tuple[str, ...]:
    """a comma-separated list of header names, or beginnings of names as in x-tenant-*; none of them may be or begin \
hive-*, ce_*, content-type, traceparent, tracestate, authorization, proxy-authorization or cookie"""
    names = tuple(name.strip().lower() for name in text.split(","))
    for name in names:
        if not re.fullmatch(r"[a-z0-9!#$%&'+.^_`|~-]+\*?", name):
            raise ValueError
        if name.endswith("*"):
            if any(own.startswith(name[:-1]) for own in (*_OWN, *_SECRET)) or name.startswith(_OWN[:2]):
                raise ValueError
        elif name.startswith(_OWN[:2]) or name in (*_OWN, *_SECRET):
            raise ValueError
    return names


def service_urls(text: str) -> tuple[tuple[str, str], ...]:
    """a comma-separated list of SERVICE=URL, where the URL has {id} for the id of the aggregate"""
    found = []
    for each in text.split(","):
        service, _, url = each.strip().partition("=")
        if "{id}" not in urlsplit(url).path:
            raise ValueError
        found.append((topic_name(service), http_url(url)))
    if len(dict(found)) < len(found):
        raise ValueError
    return tuple(found)


def url_path(text: str) -> str:
    """a path that starts with /"""
    if not text.startswith("/"):
        raise ValueError
    return text


class RedisUrl(NamedTuple):
    """The parts of a URL of Redis. ``login`` is percent-encoded, and ends with @ where it is not empty."""

    kind: str  # cluster, sentinel or "", a single server
    tls: bool
    login: str
    hosts: list[tuple[str, int]]  # of a cluster or of sentinels
    service: str
    database: int
    query: str
    shown: str  # what may be shown: all but user, password and options


_REDIS = re.compile(
    r"(rediss?)\+(cluster|sentinel)://(?:([^@/?#,]*)@)?([^@/?#]+)(?:/([^/?#]*))?(?:/(\d+))?/?(?:\?(.*))?"
)
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::(\d{1,5}))?")
_PORTS = {"cluster": 6379, "sentinel": 26379}


def split_redis_url(text: str) -> RedisUrl:
    """Raises ValueError."""
    if not (found := _REDIS.fullmatch(text)):
        parts = urlsplit(text)
        # The port is a ValueError where a password with / # or ? is not percent-encoded.
        if not re.match(r"(rediss?|unix)://", text) or parts.port == 0 or "," in parts.netloc.rpartition("@")[2]:
            raise ValueError
        if parts.scheme != "unix" and not re.fullmatch(r"/?\d*/?", parts.path):  # redis-py would take database 0
            raise ValueError
        shown = parts.netloc.rpartition("@")[2] + parts.path
        return RedisUrl("", parts.scheme == "rediss", "", [], "", 0, parts.query, shown)
    scheme, kind, login, names, path, database, query = (part or "" for part in found.groups())
    hosts = []
    for name in names.split(","):
        if not (host := _HOST.fullmatch(name)) or not 0 < int(port := host[3] or _PORTS[kind]) < 65536:
            raise ValueError
        hosts.append((host[1] or host[2], int(port)))
    if (kind == "cluster" and (path not in ("", "0") or database)) or (kind == "sentinel" and not path):
        raise ValueError
    shown = names + (f"/{path}" if kind == "sentinel" else "") + (f"/{database}" if database else "")
    return RedisUrl(
        kind, scheme == "rediss", f"{login}@" if login else "", hosts, path, int(database or 0), query, shown
    )


def redis_url(text: str) -> str:
    """a URL redis://host:port/db, redis+sentinel://host:port,…/service/db, redis+cluster://host:port,…, or unix://"""
    split_redis_url(text)
    return text


def redis_urls(text: str) -> tuple[str, ...]:
    """one or more comma-separated URLs redis://host:port/db, or others that CACHE_URL takes"""
    return tuple(redis_url(url.strip()) for url in re.split(r",(?=\s*[\w+]+://)", text))


def ip_address(text: str) -> str:
    """an IPv4 or IPv6 address without a port, such as 127.0.0.1 or ::1; or :: for all of both"""
    address = ipaddress.ip_address(text)
    if address.is_multicast:
        raise ValueError
    return str(getattr(address, "ipv4_mapped", None) or address)


def http_version(text: str) -> int:
    """1 or 2"""
    return {"1": 1, "1.1": 1, "2": 2}[text]
