"""The variables of the environment: which of them are for us, files that hold values, and how a value is shown.

`config` says which settings there are.
"""

import functools
import re
from collections.abc import Iterator, Mapping

from hiveio.errors import ConfigError

# What Kubernetes and container links set for every service, whatever it is called: kafka, telemetry, event-store.
LINKED = re.compile(r".+_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")
# Properties of librdkafka whose own names end in .file: they take a path, and librdkafka reads it.
PATHS = re.compile(r"KAFKA_SASL_OAUTHBEARER_ASSERTION_(PRIVATE_KEY_|JWT_TEMPLATE_)?FILE$")


def is_linked(name: str, value: str) -> bool:
    """Whether this comes from Kubernetes or a container link. For a Service named admin it sets ADMIN_PORT to a URL."""
    return LINKED.fullmatch(name) is not None and (name != "ADMIN_PORT" or "://" in value)


def without_secrets(environ: Mapping[str, str], name: str, text: str) -> str:
    """Name and value for an error line, without secrets: values of files, and URLs with a user or a query."""
    if not environ.get(name):
        return f"the value of {name}, read from {name}_FILE,"
    if "@" in text or ("://" in text and "?" in text):
        text = re.sub(r"^([\w+]+://)?.*", r"\1…", text, count=1, flags=re.DOTALL)
    return f"{name}={text!r}"


def lookup(environ: Mapping[str, str], name: str) -> str | None:
    path = environ.get(f"{name}_FILE")
    # These two are paths already, and SSL_CERT_FILE is a variable of OpenSSL: it names the authorities to trust.
    if not path or name in ("SSL_CERT", "SSL_KEY"):
        return environ.get(name)
    if environ.get(name):
        raise ConfigError(f"{name} and {name}_FILE are both set: keep one of them")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{name}_FILE={path!r} cannot be read: {error.strerror}") from None


class Properties(Mapping[str, str]):
    """The properties of librdkafka: ``KAFKA_SASL_MECHANISM=PLAIN`` → ``{"sasl.mechanism": "PLAIN"}``.

    They and their files are read at the first look, because a role without Kafka has no use for them. That look raises
    ConfigError for a file that cannot be read.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    @functools.cached_property
    def _values(self) -> dict[str, str]:
        found = {}
        for name in self._environ:
            if name.startswith("KAFKA_"):
                is_path = PATHS.match(name)
                plain = name if is_path else name.removesuffix("_FILE")
                value = self._environ[name] if is_path else lookup(self._environ, plain)
                if value is not None:
                    found[plain.removeprefix("KAFKA_").lower().replace("_", ".")] = value
        return found

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
