"""The overview, consumers and instances, whatever is known."""

import time

from hiveio.console.history import sample
from hiveio.console.html import joined
from hiveio.console.layout import frame
from hiveio.console.pages.overview import group_page, instances, overview, quarantined
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
    status = Status(time=time.time(), topic="bank", log="")
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
    page += joined(group_page(status.groups[0])) + joined(quarantined(status))
    assert EVIL not in page
    assert "−2" in page  # applied behind the end
    assert 'class="badge bad">not ready' in page
    assert "gone for 40 s" in page
    assert 'class="badge warn">0.2.0' in page  # two versions
    assert 'href="/groups/%3Cscript%3Ealert%281%29%3C%2Fscript%3E"' in page
    assert 'data-live="5"' in page


def many() -> Status:
    """1,000 scopes without a leader, 1,000 instances that are not ready, and a group with 1,000 partitions."""
    work = [Scope(partition=at, end=9, applied=1, quarantined=[Quarantined(fingerprint="9c", count=1, names=["A/1"])])
            for at in range(1_000)]  # fmt: skip
    ill = [Instance(id=f"i{at}", url=f"http://h:{at}", not_ready=[Check("log", "x" * 5_000)]) for at in range(1_000)]
    rows = [Partition(topic="bank", partition=at, committed=1, end=2, lag=1, lag_s=1.0, member="m")
            for at in range(1_000)]  # fmt: skip
    group = Group(
        name="g", state="STABLE", members=["m"] * 1_000, lag=1_000, lag_s=1.0, partitions=rows,
        dead=DeadLetters(count=0, keys=0, reasons={}),
    )  # fmt: skip
    return Status(time=time.time(), topic="bank", log="bank.transactions", scopes=work, instances=ill, groups=[group])


def test_a_page_is_bounded_and_leads_to_what_it_does_not_show() -> None:
    status = many()
    page = joined(overview(status, [sample(status)], first=200))
    assert "201 to 300 of 1,000 scopes" in page
    assert 'href="/?first=300"' in page
    assert 'href="/?first=100"' in page
    assert "1 to 100 of 1,000 instances" in page
    assert "and 2,900 more, which <code>hiveio status</code> shows" in page
    assert page.count("<tr>") == 3 + 100 + 1 + 100
    assert "901 to 1,000 of 1,000 instances" in joined(instances(status, 900))
    assert "no more instances" in joined(instances(status, 5_000))
    assert "1 to 100 of 1,000 partitions" in joined(group_page(status.groups[0]))
    assert "900 more scopes have some." in joined(quarantined(status))
    for shown in (page, joined(instances(status)), joined(group_page(status.groups[0])), joined(quarantined(status))):
        assert len(shown) < 250_000


def test_a_status_that_is_old_says_so() -> None:
    status = Status(time=time.time() - 90, topic="bank", log="")
    assert "This is 1 min 30 s old: no later look has ended." in joined(overview(status, []))


def test_the_workers_of_a_service_answer_for_each_other() -> None:
    workers = [Instance(id=id, url="http://h:1", commands_in_flight=7) for id in ("a", "b")]
    workers.append(Instance(id="c", url="http://h:2", commands_in_flight=1))
    assert sample(Status(time=0.0, topic="bank", log="", instances=workers)).in_flight == 8


def test_a_scope_without_work_needs_no_leader() -> None:
    for applied, rest, said in ((5, True, 'quiet">at rest'), (5, False, 'warn">nobody'), (4, False, 'warn">nobody')):
        scope = Scope(partition=0, end=5, applied=applied, rest=rest)
        status = Status(time=time.time(), topic="bank", log="", scopes=[scope])
        assert f'class="badge {said}' in joined(overview(status, []))


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
