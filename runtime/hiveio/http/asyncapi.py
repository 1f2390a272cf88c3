"""AsyncAPI 3, from the annotations of the actors: what a service writes to topics and reads from them."""

import re
from collections.abc import Sequence
from typing import Any

from hiveio.config import Settings
from hiveio.http.schemas import Schemas
from hiveio.service import Channel

_BINDING = "0.5.0"
_CLOUDEVENT = dict.fromkeys(
    ("ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "ce_subject"), "an attribute of the CloudEvent"
)
_HEADERS = {
    "content-type": "application/json",
    "traceparent": "the trace that the message belongs to (W3C Trace Context)",
    "tracestate": "what tracing systems add to it, where the request carried it",
    "hive-actor": "the actor that wrote it",
    "hive-id": "<id>.<index>: the same for a repeat of the same event",
    "hive-key": "the Idempotency-Key of the request",
    "hive-subject": "who sent the request: the sub of its token, where requests are authenticated",
    "hive-position": "<partition>:<offset>:<index> in the transaction log",
    "hive-previous": "the position before it in this partition",
    "hive-cause": "the command of a process that led to it: <topic>/<id of its log>/<partition>/<offset>:<index>",
    "hive-process": "the process that sent the command",
    "hive-outcome": "accepted or refused: it answers a command that led to no event",
    "hive-service": "the service that the command is for, which its event topic names",
    "hive-log": "the id of the log to which hive-position belongs",
    "hive-version": "the version of the aggregate after it; 1 for its first event",
}


def document(
    channels: Sequence[Channel],
    settings: Settings,
    title: str = "hiveio",
    version: str = "0.0.0",
    description: str = "",
) -> dict[str, Any]:
    """The description of these channels. A type that has no JSON schema is described as "anything"."""
    schemas = Schemas([kind for channel in channels for kind in channel.messages], {})
    described: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for channel in channels:
        name = re.sub(r"[^\w.-]", "_", channel.topic)
        at = described.setdefault(name, _channel(channel.topic, settings))
        names = [kind.__name__ for kind in channel.messages]
        for kind in channel.messages:
            messages[kind.__name__] = _message(kind, schemas, cloudevents=channel.cloudevents)
            at["messages"][kind.__name__] = {"$ref": f"#/components/messages/{kind.__name__}"}
        operations[f"{channel.action}_{name}_{channel.actor}"] = {
            "action": channel.action,
            "channel": {"$ref": f"#/channels/{name}"},
            "tags": [{"name": channel.actor}],
            "messages": [{"$ref": f"#/channels/{name}/messages/{message}"} for message in names],
            "bindings": {"kafka": _client(channel, settings)},
        }
    known = _HEADERS | (_CLOUDEVENT if any(channel.cloudevents for channel in channels) else {})
    headers = {name: {"type": "string", "description": text} for name, text in known.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version, **({"description": description} if description else {})},
        "defaultContentType": "application/json",
        "channels": described,
        "operations": operations,
        "components": {
            "messages": messages,
            "schemas": {**schemas.components, "Headers": {"type": "object", "properties": headers}},
        },
    }


def _channel(topic: str, settings: Settings) -> dict[str, Any]:
    if topic.startswith("^"):  # the topics of a pattern are known to Kafka alone
        return {"address": None, "description": f"every topic whose name matches {topic}", "messages": {}}
    return {"address": topic, "messages": {}, "bindings": {"kafka": {"topic": topic, "bindingVersion": _BINDING}}}


def _message(kind: type, schemas: Schemas, *, cloudevents: bool) -> dict[str, Any]:
    key = {"type": "string", "description": "the id of the aggregate; none where the path of the request has no id"}
    return {
        "name": kind.__name__,
        "payload": schemas.of(kind) if cloudevents else schemas.of_sent(kind),
        "headers": {"$ref": "#/components/schemas/Headers"},
        "bindings": {"kafka": {"key": key, "bindingVersion": _BINDING}},
    }


def _client(channel: Channel, settings: Settings) -> dict[str, Any]:
    client: dict[str, Any] = {"clientId": {"type": "string", "enum": [settings.client_id]}}
    if channel.action == "receive":
        client["groupId"] = {"type": "string", "enum": [channel.group or settings.group_id]}
    return client | {"bindingVersion": _BINDING}
