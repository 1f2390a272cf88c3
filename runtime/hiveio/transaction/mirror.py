"""What an instance knows of the cache of one scope: its latest watermark."""

import logging
from collections.abc import Callable

from hiveio.transaction.entry import Watermark

logger = logging.getLogger("hiveio.scope")


class Mirror:
    """The latest watermark that a reply of the cache has carried, and whether the cache still matches the log.

    Each reply of the cache carries its watermark, so each caller of the cache reports it here.
    """

    def __init__(self, where: str, topic_id: str) -> None:
        self.where = where
        self.watermark = Watermark(0, 0, topic_id, "")
        self.lost = True  # whether the cache may not match the log
        self._observed: Watermark | None = None  # ``watermark``, if a reply has carried it
        self._on_move: list[Callable[[], None]] = []
        self._on_loss: list[Callable[[], None]] = []

    def subscribe(
        self, *, on_move: Callable[[], None] | None = None, on_loss: Callable[[], None] | None = None
    ) -> None:
        """Call ``on_move`` when the cache has moved on, and ``on_loss`` when it does not match the log any more."""
        if on_move is not None:
            self._on_move.append(on_move)
        if on_loss is not None:
            self._on_loss.append(on_loss)

    def anchor(self, watermark: Watermark) -> None:
        """This watermark is a place in the log, so the cache matches the log."""
        self.watermark, self._observed, self.lost = watermark, None, False

    def observe_watermark(self, watermark: Watermark | None, asked: int | None = None) -> bool:
        """Take note of the watermark of a reply. Returns False if the cache does not match the log any more.

        ``asked`` is the offset of the watermark when the request was sent. It is for replies that are handled some
        time after they have come: an apply may have moved the cache in between.
        """
        if watermark is not None and watermark is self._observed:  # so it is with most replies of a batch
            return not self.lost
        mine = self.watermark
        least = mine.offset if asked is None else asked
        if watermark is None or watermark[2:4] != mine[2:4] or watermark.offset < least:
            if not self.lost:
                there = watermark.text if watermark is not None else "nothing"
                logger.warning("the cache of %s fell back from %s to %s", self.where, mine.text, there)
                self.lost = True
                for lost in self._on_loss:
                    lost()
            return False
        if watermark.offset > mine.offset:
            self.watermark = watermark
            for moved in self._on_move:
                moved()
        if watermark.offset >= mine.offset:
            self._observed = watermark
        return True
