"""What could not be read again never reaches the log: a record that cannot be read stops its scope for good."""

from typing import Any

import pytest

from hiveio import Actor, Command, Event, Model, Rejected, testing
from hiveio.transaction.journal import LEVELS


class Careless(Rejected):
    """Its headers are nothing that ``Rejected`` would have taken."""

    headers = {"Retry-After": 60}  # type: ignore[dict-item]  # noqa: RUF012

    def __init__(self) -> None: ...


class Put(Command):
    how: str
    levels: int = 0


class Done(Event):
    tree: Any = None


class State(Model):
    done: int = 0


class Trees(Actor):
    path = "/trees/{id}"

    def perform(self, state: State | None, command: Put) -> Done:
        tree: list[Any] = []
        for _ in range(command.levels):
            tree = [tree]
        match command.how:
            case "careless":
                raise Careless
            case "changed":
                refusal = Rejected("no")
                refusal.members["by"] = object()
                raise refusal
            case "refuse":
                raise Rejected("no", tree=tree)
            case "surrogate":
                raise Rejected("no \udcff", text="\udcff")
        return Done(tree)

    def replay(self, state: State | None, event: Done) -> State:
        return State((state.done if state else 0) + 1)


@pytest.mark.parametrize(
    "put", [Put("careless"), Put("changed"), Put("refuse", LEVELS), Put("give", LEVELS), Put("give", 900)], ids=str
)
async def test_it_is_a_fault_of_its_command_and_nothing_else(put: Put) -> None:
    async with testing.Service(Trees) as service:
        for _ in range(2):
            with pytest.raises(TypeError):
                await service.submit(Trees, "a", put, key="k")
        await service.submit(Trees, "b", Put("give", 200))
        assert len(service.records()) == 2  # the format, and what was accepted
    async with testing.Service(Trees, log=service.log) as later:
        assert (await later.read(Trees, "b"))[0] == State(1)


async def test_a_text_that_is_no_utf_8_is_escaped_in_a_refusal_on_record() -> None:
    async with testing.Service(Trees) as service:
        for detail in ("no \udcff", "no \\udcff"):  # the first answer, and the one on record
            with pytest.raises(Rejected) as refused:
                await service.submit(Trees, "a", Put("surrogate"), key="k")
            assert refused.value.detail == detail
        assert refused.value.members == {"text": "\\udcff"}
