"""A platform without edges: a migrated database, a container, users, submissions and an applier."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.container import Container
from models.errors import Refusal
from models.identity.principals import Principal, Role
from models.ids import lane_key, new_id
from models.intake import Receipt
from models.job import Door, Job, Operation, Submission, to_json
from models.migrate import migrate
from models.retry import RetryPolicy
from models.settings import Settings
from tasks.applier import Applier
from tests.kit import tickets

PROMPT = RetryPolicy(max_attempts=3, base=timedelta(0))
"""Retries at once."""


class Platform:
    """Everything between the edges, on one database.

    Args:
        settings: Name the database; the resources come with it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.container = Container(settings, role="test", pool_size=24)
        self.database = self.container.database
        self.ledger = self.container.ledger
        self.registry = self.container.registry
        self.intake = self.container.intake
        migrate(self.database.engine, resources=[one.type for one in self.registry])
        with self.database.transaction() as connection:
            tickets.TABLE.create(connection, checkfirst=True)
        self.admin = self.add_user("admin", Role.ADMIN)
        self.ada = self.add_user("ada", Role.USER)
        self.bob = self.add_user("bob", Role.USER)
        self.guest = self.add_user("guest", Role.GUEST)

    def add_user(self, name: str, role: Role) -> Principal:
        """Somebody with a password that nobody has."""
        with self.database.transaction() as connection:
            return self.container.users.add(connection, f"{name}@example.org", "none", role)

    # ---- submitting --------------------------------------------------------------------

    def submission(
        self,
        operation: Operation,
        resource_id: UUID | None = None,
        data: dict[str, Any] | None = None,
        *,
        by: Principal | None = None,
        resource: str = "entities",
        **more: Any,
    ) -> Submission:
        """A submission as an edge would hand it over. By ada, on a fresh id, unless told otherwise."""
        resource_id = resource_id or new_id()
        return Submission(
            **{
                "job_id": new_id(),
                "operation": operation,
                "resource": resource,
                "resource_id": resource_id,
                "lane": lane_key(resource, resource_id),
                "principal": by or self.ada,
                "door": Door.HTTP,
                "request_id": "test-request",
                "payload": to_json(data) if data is not None else None,
            }
            | more
        )

    def create(self, name: str = "thing", **more: Any) -> Submission:
        """The creation of an entity."""
        return self.submission(Operation.CREATE, data={"name": name}, **more)

    def patch(self, resource_id: UUID, **data: Any) -> Submission:
        """A patch of an entity."""
        return self.submission(Operation.PATCH, resource_id, data)

    def ticket(self, number: str, **data: Any) -> Submission:
        """The creation of a ticket."""
        return self.submission(Operation.CREATE, data={"number": number, **data}, resource="tickets")

    def patch_ticket(self, resource_id: UUID, **data: Any) -> Submission:
        """A patch of a ticket."""
        return self.submission(Operation.PATCH, resource_id, data, resource="tickets")

    def accept(self, *batch: Submission) -> list[UUID]:
        """Accept a batch, in which nothing may be refused; the ids of its jobs."""
        answers = self.intake.accept(batch)
        for answer in answers:
            if isinstance(answer, Refusal):
                raise AssertionError(f"refused: {answer.message}") from answer
        return [answer.job.id for answer in answers if isinstance(answer, Receipt)]

    # ---- applying ----------------------------------------------------------------------

    def applier(self, retry_policy: RetryPolicy = PROMPT) -> Applier:
        """An applier that does not wait between its attempts."""
        container = self.container
        return Applier(
            container.database,
            container.ledger,
            container.registry,
            container.users,
            container.views,
            retry_policy,
            sleep=lambda _: None,
        )

    def made(self, *batch: Submission) -> list[Job]:
        """Accept and apply; the jobs afterwards."""
        ids = self.accept(*batch)
        self.applier().apply(ids)
        return [self.job(one) for one in ids]

    # ---- looking -----------------------------------------------------------------------

    def job(self, job_id: UUID) -> Job:
        """A job as it stands."""
        with self.database.snapshot() as connection:
            return self.ledger.find(connection, [job_id])[job_id]

    def states(self, ids: list[UUID]) -> list[str]:
        """Where jobs stand."""
        with self.database.snapshot() as connection:
            found = self.ledger.find(connection, ids)
        return [str(found[one].state) for one in ids]

    def result(self, job_id: UUID) -> dict[str, Any]:
        """What a job left of its instance."""
        document: dict[str, Any] = json.loads(self.job(job_id).result or "null")
        return document

    def instance(self, resource_id: UUID, resource: str = "entities") -> dict[str, Any] | None:
        """An instance's row; None where there is none."""
        with self.database.snapshot() as connection:
            found = self.registry[resource].repository.load_many(connection, [resource_id])
        return dict(found[resource_id]) if resource_id in found else None

    def rows(self, query: str, **parameters: Any) -> list[Any]:
        """What a query finds, in a transaction of its own, committed."""
        with self.database.transaction() as connection:
            result = connection.execute(text(query), parameters)
            return list(result.all()) if result.returns_rows else []

    def events(self, job_id: UUID) -> list[str]:
        """The states that a job went through, in order."""
        query = "SELECT state FROM job_events WHERE job_id = :id ORDER BY sequence"
        return [row[0] for row in self.rows(query, id=job_id)]

    def end_everything(self) -> None:
        """Leave no job and no delivery open, so that a test does not see its predecessor's."""
        self.rows("DELETE FROM deliveries")
        self.rows("DELETE FROM callback_endpoints")
        self.rows("DELETE FROM breakers")
        self.rows("DELETE FROM jobs")
        self.rows("DELETE FROM job_events")


@contextmanager
def running_platform(database_url: str, **settings: Any) -> Iterator[Platform]:
    """A platform on an empty database, for the length of a block."""
    given = {"resources": ("tests.kit.tickets",)} | settings
    with TemporaryDirectory() as keys:
        made = Settings(_env_file=None, database_url=database_url, data_dir=Path(keys), **given)
        platform = Platform(made)
        try:
            yield platform
        finally:
            platform.container.close()
