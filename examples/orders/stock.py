"""Stock (hiveio/stream-processor): how many pieces of each article are there, and for which orders some were picked."""

from hiveio import Actor, Command, Model, NotFound, Rejected

from .commands import Amount, Pick
from .events import GoodsPicked, GoodsReceived


class Receive(Command):
    quantity: Amount


class Article(Model):
    there: int = 0
    picked: int = 0


class ArticleActor(Actor):
    path = "/articles/{id}"

    def perform(self, article: Article | None, command: Receive | Pick) -> GoodsReceived | GoodsPicked:
        if isinstance(command, Receive):
            return GoodsReceived(command.quantity)
        if article is None:
            raise NotFound("there is no such article")
        if command.quantity > article.there:
            raise Rejected("it is out of stock", there=article.there)
        return GoodsPicked(command.order, command.quantity)

    def replay(self, article: Article | None, event: GoodsReceived | GoodsPicked) -> Article:
        article = article or Article()
        match event:
            case GoodsReceived(quantity):
                return Article(article.there + quantity, article.picked)
            case GoodsPicked(_, quantity):
                return Article(article.there - quantity, article.picked + quantity)
