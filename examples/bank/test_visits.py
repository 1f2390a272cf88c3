"""Visits: what is written, and what is refused at the door."""

from hiveio.testing import given

from .visits import PageVisited, Visit, VisitsActor


def test_a_visit_is_written() -> None:
    given(VisitsActor).when(Visit("/prices", "ada")).then(PageVisited("/prices", "ada"))
    given(VisitsActor).when(Visit("/prices")).then(PageVisited("/prices", "somebody"))


def test_a_visit_names_a_page_of_the_public_site() -> None:
    given(VisitsActor).when(Visit("prices")).then_invalid("/payload/page")
    given(VisitsActor).when(Visit("/internal/tools")).then_rejected("not counted")
