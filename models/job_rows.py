"""A job from the row that it is kept in. No queries; see ``ledger_statements.py``."""

from collections.abc import Sequence
from typing import Any

from models.job import Job, JobState, Operation, Priority


def job_from(row: Sequence[Any]) -> Job:
    """A job from the columns of :data:`ledger_statements.JOB_COLUMNS`, in their order."""
    return Job(
        id=row[0],
        state=JobState(row[1]),
        operation=Operation(row[2]),
        resource=row[3],
        resource_id=row[4],
        principal_id=row[5],
        attempt=row[6],
        priority=Priority(row[7]),
        created_at=row[8],
        run_at=row[9],
        finished_at=row[10],
        expires_at=row[11],
        version=row[12],
        result=row[13],
        error=row[14],
        request_id=row[15],
        attempts=row[16],
        generation=row[17],
        parent_id=row[18],
        sequence=row[19],
    )
