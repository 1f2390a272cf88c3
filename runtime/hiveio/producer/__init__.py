"""The producer role: messages come in over HTTP, one by one or in batches, and their events go to Kafka."""

from collections.abc import Callable

from hiveio.actor import Contract
from hiveio.envelope import Handler
from hiveio.http.routes import About, Route, messages
from hiveio.kafka import Sender
from hiveio.producer.batch import Intake
from hiveio.producer.keys import Keys
from hiveio.producer.publishing import Publishing, topic_of
from hiveio.service import Service

ABOUT = About(accepts=("Idempotency-Key",), answers_with=("Hive-Position",), problems=(409,))


def published(service: Service, handler: Callable[[Contract], Handler]) -> list[Route]:
    """POST for each actor of the service; what its handler gives is written to Kafka. Raises ConfigError."""
    settings, contracts = service.settings, service.contracts
    queued = settings.producer_ack == "queued"
    topics = [topic_of(contract, settings) for contract in contracts]
    # Before the sender, so it stops after it: what is flushed at the end settles keys.
    keys = service.use(Keys(settings)) if settings.cache_url and settings.idempotency_time_s else None
    sender = service.use(Sender(settings, topics=topics, shed=not queued, observer=service.telemetry.observer()))
    routes = []
    for topic, contract in zip(topics, contracts, strict=True):
        service.sends(topic, contract, cloudevents=settings.event_format == "cloudevents")
        publishing = Publishing(handler(contract), contract, sender, settings, keys)
        intake = Intake(service, contract.command_codec, publishing)
        routes += messages(contract, publishing, success=202 if queued else 200, intake=intake, about=ABOUT)
    return routes
