"""A batch with a bad row is halved; a fault in the second half never unsays what the first was told."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy import exc

from models.errors import Contention, DatabaseUnavailable, Invalid, Transient, Unavailable
from models.identity.principals import Principal, Role
from models.ids import new_id
from models.intake import Answers, Intake, Receipt
from models.job import Door, Job, Operation, Submission


class _Database:
    @contextmanager
    def transaction(self) -> Iterator[None]:
        yield


class _Scripted(Intake):
    """Answers alone what the script says; any larger batch is refused by the database."""

    def __init__(self, script: dict[UUID, Exception | None]) -> None:
        super().__init__(cast(Any, _Database()), cast(Any, None), cast(Any, None), cast(Any, None))
        self.script = script

    def _answers(self, connection: object, batch: Sequence[Submission]) -> tuple[Answers, None]:
        if len(batch) > 1:
            raise exc.DataError("x", {}, Exception())
        problem = self.script[batch[0].job_id]
        if problem is not None:
            raise problem
        return {batch[0].job_id: Receipt(cast(Job, None))}, None


def _batch(*problems: Exception | None) -> tuple[_Scripted, list[Submission]]:
    submissions = [
        Submission(
            job_id=new_id(),
            operation=Operation.CREATE,
            resource="entities",
            resource_id=new_id(),
            lane=1,
            principal=Principal(new_id(), "a@b.c", Role.USER),
            door=Door.HTTP,
            request_id="r",
        )
        for _ in problems
    ]
    script = {one.job_id: problem for one, problem in zip(submissions, problems, strict=True)}
    return _Scripted(script), submissions


def test_only_the_bad_row_is_refused() -> None:
    intake, batch = _batch(None, exc.DataError("x", {}, Exception()), None, None)
    assert [type(answer) for answer in intake.accept(batch)] == [Receipt, Invalid, Receipt, Receipt]


@pytest.mark.parametrize("fault", [Contention("busy"), DatabaseUnavailable("away")])
def test_fault_after_a_part_was_accepted_refuses_only_the_rest(fault: Transient) -> None:
    intake, batch = _batch(None, None, fault, None)
    kinds = [type(answer) for answer in intake.accept(batch)]
    assert kinds == [Receipt, Receipt, Unavailable, Unavailable]


def test_fault_before_anything_was_accepted_is_raised() -> None:
    intake, batch = _batch(Contention("busy"), None)
    with pytest.raises(Contention):
        intake.accept(batch)
