"""An article: what is not there is not picked."""

from hiveio.testing import given

from .commands import Pick
from .events import GoodsPicked, GoodsReceived
from .stock import Article, ArticleActor


def test_goods_are_picked_while_there_are_some() -> None:
    picked = given(ArticleActor, GoodsReceived(3)).when(Pick("1", 2)).then(GoodsPicked("1", 2))
    picked.then_state(Article(1, 2)).when(Pick("2", 2)).then_rejected("out of stock")
