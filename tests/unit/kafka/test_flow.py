"""When nothing more is taken, and when to come back."""

from hiveio.kafka.flow import Flow

BOUND_S = 8.0  # nothing is taken after 4 s of silence, or while confirmations take more than 2 s


def run(flow: Flow, seconds: int, *, arriving: int, rate: int) -> tuple[int, set[str]]:
    """So many records a second arrive and are confirmed; the most that waited, and the reasons of refusals."""
    held, most, now = 0, 0, 100.0
    reasons: set[str] = set()
    flow.look(held, now)
    for _ in range(seconds * 20):
        now += 0.05
        if flow.refusal is None:
            held += arriving // 20
        else:
            reasons.add(flow.refusal)
            assert held // rate <= flow.retry_after(held) <= held / rate * 1.5 + 1
        most = max(most, held)
        done = min(held, rate // 20)
        held -= done
        if done:
            flow.confirmed(done, held / rate, now)
        flow.look(held, now)
    return most, reasons


def test_what_kafka_can_take_is_taken() -> None:
    flow = Flow(BOUND_S)
    assert not run(flow, 10, arriving=1000, rate=1000)[1]


def test_more_than_it_can_take_is_refused_before_the_deadline_passes() -> None:
    flow = Flow(BOUND_S)
    most, reasons = run(flow, 30, arriving=4000, rate=1000)
    assert 1_000 < most < BOUND_S * 1000, "what was taken is confirmed in time"
    assert reasons
    assert all("records wait, and Kafka confirms 1" in reason for reason in reasons), reasons


def test_a_slow_first_record_and_an_idle_time_refuse_nothing() -> None:
    flow = Flow(BOUND_S)
    flow.confirmed(1, 3.0, 100.0)
    flow.look(0, 400.0)
    flow.look(500, 400.1)
    assert flow.refusal is None


def test_silence_is_an_outage_and_a_confirmation_its_end() -> None:
    flow = Flow(BOUND_S)
    flow.look(0, 100.0)
    flow.look(1, 103.9)
    assert not flow.stalled
    flow.look(1, 110.0)
    assert flow.stalled
    assert flow.refusal == "Kafka has confirmed nothing for 10.0 s"
    assert 10 <= flow.retry_after(1) <= 15, "as long again as it has lasted"
    flow.look(1, 400.0)
    assert 60 <= flow.retry_after(1) <= 90
    flow.confirmed(1, 300.0, 400.1)
    flow.look(50, 400.2)
    assert flow.refusal is None, "the rate of the outage is not that of Kafka"


def test_retry_after_is_spread() -> None:
    flow = Flow(BOUND_S)
    flow.look(1, 100.0)
    flow.look(1, 130.0)
    assert len({flow.retry_after(1) for _ in range(100)}) > 5
