"""What an instance has last seen of the cache of one scope."""

import logging
from collections.abc import Callable

from hiveio.transaction.cache import Watermark

logger = logging.getLogger("hiveio.scope")


class Mirror:
    """The watermark of the cache that was last seen, and whether the cache still matches the log.

    Each reply of the cache brings its watermark, so whoever asks the cache observes it here.
    """

    def __init__(self, where: str, topic_id: str) -> None:
        self.where = where
        self.watermark = Watermark(0, 0, topic_id, "")
        self.lost = True  # the cache is not known to match the log
        self._observed: Watermark | None = None  # ``watermark``, where a reply has brought it
        self._on_move: list[Callable[[], None]] = []
        self._on_loss: list[Callable[[], None]] = []

    def subscribe(
        self, *, on_move: Callable[[], None] | None = None, on_loss: Callable[[], None] | None = None
    ) -> None:
        """``on_move`` is called when the cache has moved further on, ``on_loss`` when it does not match the log any
        more."""
        if on_move is not None:
            self._on_move.append(on_move)
        if on_loss is not None:
            self._on_loss.append(on_loss)

    def anchor(self, watermark: Watermark) -> None:
        """This watermark is in the log: the cache matches it."""
        self.watermark, self._observed, self.lost = watermark, None, False

    def observe_watermark(self, watermark: Watermark | None, asked: int | None = None) -> bool:
        """Take note of the watermark that came with a reply. False if the cache does not match the log any more.

        ``asked``: the offset of the cache when the question was put, for a reply that is not looked at as it comes: an
        apply may have moved the cache in between.
        """
        if watermark is not None and watermark is self._observed:  # as most replies of a batch
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
