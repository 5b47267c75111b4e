"""A batch with a bad row is halved inside one transaction: all of the good rows are accepted, or none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy import exc

from models.errors import Contention, DatabaseUnavailable, Invalid, Transient
from models.identity.principals import Principal, Role
from models.ids import new_id
from models.intake import Answers, Intake, Receipt
from models.job import Door, Job, Operation, Submission


class _Connection:
    @contextmanager
    def begin_nested(self) -> Iterator[None]:
        yield


class _Database:
    committed = 0

    @contextmanager
    def transaction(self, _step: object) -> Iterator[_Connection]:
        yield _Connection()
        self.committed += 1


class _Scripted(Intake):
    """Answers alone what the script says; any larger batch is refused by the database."""

    def __init__(self, script: dict[UUID, Exception | None]) -> None:
        self.database = _Database()
        super().__init__(cast(Any, self.database), cast(Any, None), cast(Any, None), cast(Any, None))
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
def test_fault_among_the_halves_accepts_nothing(fault: Transient) -> None:
    intake, batch = _batch(None, None, fault, None)
    with pytest.raises(type(fault)):
        intake.accept(batch)
    assert intake.database.committed == 0


def test_halves_share_one_transaction() -> None:
    intake, batch = _batch(None, exc.DataError("x", {}, Exception()), None)
    intake.accept(batch)
    assert intake.database.committed == 1


def test_fault_before_anything_was_accepted_is_raised() -> None:
    intake, batch = _batch(Contention("busy"), None)
    with pytest.raises(Contention):
        intake.accept(batch)
