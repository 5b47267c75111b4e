"""A job's wire document, and the states' own rules."""

from datetime import UTC, datetime
from uuid import UUID

import orjson
import pytest

from models.job import FINAL, OPEN, TRANSITIONS, Job, JobState, Operation, Priority, to_json

QUEUED = Job(
    id=UUID("01980000-0000-7000-8000-000000000001"),
    state=JobState.QUEUED,
    operation=Operation.CREATE,
    resource="entities",
    resource_id=UUID("01980000-0000-7000-8000-000000000002"),
    principal_id=UUID("01980000-0000-7000-8000-000000000003"),
    attempt=0,
    priority=Priority.NORMAL,
    created_at=datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
    run_at=None,
    finished_at=None,
    expires_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    version=None,
    result=None,
    error=None,
    request_id="request-1",
    sequence=41,
)


def changed(**more: object) -> Job:
    values = {name: getattr(QUEUED, name) for name in Job.__slots__}
    return Job(**(values | more))


def test_unfinished_job() -> None:
    assert to_json(QUEUED.document()) == (
        b'{"id":"01980000-0000-7000-8000-000000000001","state":"queued","done":false,'
        b'"operation":"create","resource":"entities",'
        b'"resourceId":"01980000-0000-7000-8000-000000000002","attempt":0,"priority":"normal",'
        b'"createdAt":"2026-01-02T03:04:05.000006Z","runAt":null,"finishedAt":null,'
        b'"expiresAt":"2026-01-02T03:04:05Z",'
        b'"resultUrl":"/api/v1/jobs/01980000-0000-7000-8000-000000000001/result",'
        b'"requestId":"request-1","sequence":41}'
    )


def test_succeeded_job_carries_version_and_result_as_they_were_kept() -> None:
    job = changed(state=JobState.SUCCEEDED, version=3, result='{"name":"Zo\\u00eb", "n": 1.50}')
    text = to_json(job.document())
    assert b'"version":3,"result":{"name":"Zo\\u00eb", "n": 1.50},"resultUrl"' in text
    assert orjson.loads(text)["done"] is True
    assert "result" not in job.document(with_result=False)


def test_failed_job_carries_its_problem() -> None:
    job = changed(state=JobState.FAILED, error={"status": 409})
    assert orjson.loads(to_json(job.document()))["error"] == {"status": 409}


@pytest.mark.parametrize("secret", ["principalId", "payload", "lane", "crashes", "announceAt"])
def test_document_holds_nothing_of_the_inside(secret: str) -> None:
    assert secret not in changed(state=JobState.DEAD, error={}, version=1, result="{}").document()


@pytest.mark.parametrize("state", list(JobState))
def test_only_a_dead_job_leaves_a_final_state(state: JobState) -> None:
    assert state.is_done is (state in FINAL)
    if state in FINAL:
        assert TRANSITIONS[state] == ({JobState.QUEUED} if state is JobState.DEAD else set())


def test_every_open_job_can_come_to_every_end() -> None:
    assert all(TRANSITIONS[state] >= FINAL for state in OPEN)


@pytest.mark.parametrize(
    ("operation", "action"),
    [("create", "write"), ("replace", "write"), ("patch", "write"), ("delete", "delete"), ("read", "read")],
)
def test_operation_needs_its_permission(operation: str, action: str) -> None:
    assert Operation(operation).action == action
