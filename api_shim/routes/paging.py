"""Pages of a list by a signed cursor: where one begins, how many items it has, how it is told."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from api_shim.routes.outcomes import NO_STORE
from api_shim.web import query
from api_shim.web.http import Request, Response, json_response
from models.cursor import Cursors

Item = TypeVar("Item")


class Paging:
    """One request for a page.

    Args:
        request: Names ``limit`` and ``cursor``.
        cursors: Sign the places.
        question: What the cursor holds for: the list, its filters, and whose it is.
        length: Texts that make up a place.

    Attributes:
        limit: Items on the page, at most. Ask for one more: so a next page is known of.
        place: Where the page before ended; None at the first.

    Raises:
        Invalid: The limit is out of range, or the cursor belongs to another list.
    """

    def __init__(
        self, request: Request, cursors: Cursors, question: Sequence[str | None], length: int = 1
    ) -> None:
        given = request.query
        self._cursors = cursors
        self._question = question
        self.limit = query.limit(given)
        self.place = cursors.read(question, given["cursor"], length) if "cursor" in given else None

    @property
    def after(self) -> UUID | None:
        """The id at which the page before ended, where a place is an id."""
        return UUID(self.place[0]) if self.place is not None else None

    def answer(
        self,
        found: Sequence[Item],
        document: Callable[[Item], Any],
        place: Callable[[Item], Sequence[str]],
    ) -> Response:
        """The page of ``found``, which may hold one item more than the page.

        Args:
            found: In order.
            document: An item as it is told.
            place: Of an item.
        """
        shown = found[: self.limit]
        is_last = len(found) <= self.limit
        next_cursor = None if is_last else self._cursors.write(self._question, place(shown[-1]))
        items = [document(one) for one in shown]
        return json_response(200, {"items": items, "nextCursor": next_cursor}, (NO_STORE,))
