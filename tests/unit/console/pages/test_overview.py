"""The overview, consumers and instances, whatever is known."""

from hiveio.console.history import sample
from hiveio.console.html import joined
from hiveio.console.layout import frame
from hiveio.console.pages.overview import group_page, overview, quarantined
from hiveio.status.model import Check, DeadLetters, Group, Instance, Partition, Quarantined, Scope, Status

EVIL = "<script>alert(1)</script>"


def full() -> Status:
    partition = Partition(topic="bank", partition=0, committed=3, end=5, lag=2, lag_s=None, member="")
    return Status(
        time=100.0,
        topic="bank",
        log="bank.transactions",
        scopes=[
            Scope(partition=0, end=5, judged=4, applied=3, published=2, leader="a", rate=1.5, void_share=0.5),
            Scope(partition=1, end=1, quarantined=[Quarantined(fingerprint="9c", count=2, names=[EVIL])]),
        ],
        groups=[
            Group(
                name=EVIL, state="STABLE", members=[EVIL], lag=2, lag_s=None, partitions=[partition],
                dead=DeadLetters(count=3, keys=1, reasons={"failed": 3}),
            )
        ],
        instances=[
            Instance(id="a", url="http://h:1", version="0.1.0", ready=False, not_ready=[Check("log", EVIL)], leads=[0]),
            Instance(id="b", url="http://h:2", version="0.2.0", gone=True, seen_s=40.0),
            Instance(id="c", url="http://h:3", version="0.2.0", ready=True, seen_s=1.0),
        ],
        problems=[EVIL],
    )  # fmt: skip


def test_nothing_is_shown_where_nothing_is() -> None:
    status = Status(time=0.0, topic="bank", log="")
    page = frame("Overview", "/", overview(status, [sample(status)]))
    for said in (
        "Nothing needs attention.",
        "No consumer group reads these topics.",
        "No instance has announced itself",
    ):
        assert said in page
    assert "begins now" in page


def test_what_is_wrong_is_marked_and_what_others_wrote_is_text() -> None:
    status = full()
    page = frame("Overview", "/", overview(status, [sample(status)] * 3), live_s=5.0, topic=EVIL, query=EVIL)
    page += joined(group_page(status.groups[0])) + quarantined(status)
    assert EVIL not in page
    assert "−2" in page  # applied behind the end
    assert 'class="badge bad">not ready' in page
    assert "gone for 40 s" in page
    assert 'class="badge warn">0.2.0' in page  # two versions
    assert 'href="/groups/%3Cscript%3Ealert%281%29%3C%2Fscript%3E"' in page
    assert 'data-live="5"' in page


def test_a_chart_has_a_gap_where_nobody_could_be_asked() -> None:
    status = full()
    unknown = sample(status)
    known = [unknown._replace(time=float(at), publisher_lag_s=at / 10 if at != 5 else None) for at in range(10)]
    page = joined(overview(status, known))
    assert "Wait to be published: now 0.9 s, at most 0.9 s" in page
    chart = page.partition("Wait to be published: now")[2].partition("</svg>")[0]
    assert chart.count("<polyline") == 2


def test_a_sample_is_of_all_scopes_groups_and_instances() -> None:
    found = sample(full())
    assert (found.rate, found.void_share, found.publisher_lag_s) == (1.5, 0.5, None)
    assert (found.group_lag, found.group_lag_s, found.dead, found.in_flight) == (2, None, 3, None)
