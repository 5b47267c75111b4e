"""Effects on third parties, by the README's own example: built once, sent under one key, fallen back from."""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery

from models.breaker import THRESHOLD
from models.errors import ConfigurationError
from models.job import Job, Operation
from models.settings import Service
from models.tables import metadata
from tasks.service_client import ServiceClient
from tests.kit import readme
from tests.kit.delivering import PatientDeliverer, deliveries, delivering, ids, make_due
from tests.kit.platform import Platform, running_platform
from tests.kit.receiver import Exchange, WebhookReceiver, answer, close, hang

MODULE = "readme_invoices_with_effects"
KEY = "Bearer a-key-of-accounting"


@pytest.fixture(scope="module")
def module_platform(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with the README's invoices and their effects."""
    (invoices,) = readme.blocks(readme.section("Add your own resource"), "python")
    (effects,) = readme.blocks(readme.section("Effects on third parties"), "python")
    source = invoices.replace(
        "RESOURCE = ResourceType(", effects + "\n\nRESOURCE = ResourceType(\n    effects=(BOOK,),"
    )
    folder: Path = tmp_path_factory.mktemp("invoices")
    (folder / f"{MODULE}.py").write_text(source)
    sys.path.insert(0, str(folder))
    try:
        with running_platform(database_url, resources=("tests.kit.tickets", MODULE)) as made:
            with made.database.transaction() as connection:
                loaded().TABLE.create(connection)
            yield made
            metadata.remove(loaded().TABLE)
    finally:
        sys.path.remove(str(folder))


def loaded() -> ModuleType:
    return sys.modules[MODULE]


@pytest.fixture
def accounting() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as made:
        yield made


@pytest.fixture
def office() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as made:
        yield made


@pytest.fixture
def accounting_seconds() -> int:
    """How long its answer is awaited."""
    return 10


@pytest.fixture
def deliverer(
    platform: Platform,
    app: Celery,
    accounting: WebhookReceiver,
    office: WebhookReceiver,
    accounting_seconds: int,
) -> Iterator[PatientDeliverer]:
    platform.rows("DELETE FROM invoices")
    services = {
        "accounting": Service.model_validate(
            {
                "url": accounting.url("/api"),
                "headers": {"Authorization": KEY},
                "timeout_seconds": accounting_seconds,
            }
        ),
        "office": Service(url=office.url("")),
    }
    with delivering(platform, app, services=services) as made:
        yield made


def invoice(platform: Platform, number: str, amount: str = "12.50") -> Any:
    data = {"number": number, "amount": amount, "date": "2026-11-25"}
    return platform.submission(Operation.CREATE, data=data, resource="invoices")


def invoiced(platform: Platform, *numbers: str, **more: Any) -> list[Job]:
    return platform.made(*(invoice(platform, number, **more) for number in numbers))


def effects(platform: Platform) -> dict[str, Any]:
    return {row.target: row for row in deliveries(platform, "effect")}


# ---- what is sent ------------------------------------------------------------------------


def test_effect_of_a_change_is_sent_once_under_its_key(
    platform: Platform, deliverer: PatientDeliverer, accounting: WebhookReceiver
) -> None:
    (job,) = invoiced(platform, "A1")
    for _ in range(2):
        deliverer.deliver(ids(platform, "effect"))
    (request,) = accounting.requests
    assert (request.method, request.path) == ("POST", "/api/bookings")
    assert json.loads(request.body) == {"invoice": "A1", "amount": "12.50"}
    assert request.headers["idempotency-key"] == f"{job.id}.book"
    assert request.headers["authorization"] == KEY
    assert effects(platform)["book"].state == "delivered"


def test_two_workers_send_it_once(
    platform: Platform, deliverer: PatientDeliverer, accounting: WebhookReceiver
) -> None:
    invoiced(platform, *(f"T{number}" for number in range(5)))
    announced = ids(platform, "effect")
    with ThreadPoolExecutor(3) as workers:
        list(workers.map(lambda _: deliverer.deliver(announced), range(3)))
    assert len(accounting.requests) == 5


def test_no_effect_of_what_failed_or_needs_none(
    platform: Platform, deliverer: PatientDeliverer, accounting: WebhookReceiver
) -> None:
    invoiced(platform, "B1", amount="0.00")
    platform.made(invoice(platform, "B1"), platform.create(), platform.ticket("B"))
    assert [row.target for row in deliveries(platform, "effect")] == ["book"]
    deliverer.deliver(ids(platform, "effect"))
    assert accounting.requests == []
    assert effects(platform)["book"].state == "delivered"
    platform.rows('DELETE FROM "order-tickets"')


def test_effect_is_written_with_its_change_or_not(platform: Platform, deliverer: PatientDeliverer) -> None:
    (job,) = platform.accept(invoice(platform, "C1"))
    platform.rows("ALTER TABLE deliveries ADD CONSTRAINT no_effects CHECK (kind <> 'effect') NOT VALID")
    try:
        platform.applier().apply([job])
    finally:
        platform.rows("ALTER TABLE deliveries DROP CONSTRAINT no_effects")
    assert platform.job(job).state != "succeeded"
    assert platform.instance(platform.job(job).resource_id, "invoices") is None


# ---- trouble ------------------------------------------------------------------------------


@pytest.mark.parametrize("accounting_seconds", [1])
def test_trouble_is_tried_again_with_the_same_key_and_body(
    platform: Platform, deliverer: PatientDeliverer, accounting: WebhookReceiver
) -> None:
    accounting.will(answer(503, headers={"Retry-After": "600"}), close(), hang(), answer(409))
    (job,) = invoiced(platform, "D1")
    deliverer.deliver(ids(platform, "effect"))
    row = effects(platform)["book"]
    assert (row.state, row.attempts, row.response_status) == ("retrying", 1, 503)
    assert (row.announce_at - datetime.now(UTC)).total_seconds() > 590
    platform.rows('UPDATE jobs SET result = \'{"number": "changed", "amount": "1.00"}\'')
    for _ in range(4):
        make_due(platform)
        deliverer.deliver(ids(platform, "effect"))
    assert effects(platform)["book"].state == "delivered"
    assert {request.body for request in accounting.requests} == {accounting.requests[0].body}
    assert {request.headers["idempotency-key"] for request in accounting.requests} == {f"{job.id}.book"}
    assert len(accounting.requests) == 5


@pytest.mark.parametrize("status", [400, 403, 404, 422, 302])
def test_refusal_is_final_and_falls_back(
    platform: Platform,
    deliverer: PatientDeliverer,
    accounting: WebhookReceiver,
    office: WebhookReceiver,
    status: int,
) -> None:
    accounting.will_always(answer(status))
    (job,) = invoiced(platform, f"E{status}")
    deliverer.deliver(ids(platform, "effect"))
    deliverer.deliver(ids(platform, "effect"))
    states = {name: (row.state, row.attempts) for name, row in effects(platform).items()}
    assert states == {"book": ("failed", 1), "complain": ("delivered", 1)}
    (complaint,) = office.requests
    assert complaint.path == "/messages"
    assert json.loads(complaint.body) == {
        "about": str(job.resource_id),
        "reason": f"accounting answered {status}",
    }
    assert complaint.headers["idempotency-key"] == f"{job.id}.complain"
    assert "authorization" not in complaint.headers


def test_breaker_parks_what_waits_and_one_real_call_of_all_workers_probes(
    platform: Platform, app: Celery, deliverer: PatientDeliverer, accounting: WebhookReceiver
) -> None:
    accounting.will_always(answer(503))
    invoiced(platform, *(f"F{number}" for number in range(THRESHOLD + 4)))
    deliverer.deliver(ids(platform, "effect"))
    assert len(accounting.requests) == THRESHOLD
    assert platform.rows("SELECT dependency FROM breakers") == [("service:accounting",)]
    rows = deliveries(platform, "effect")
    assert sorted(row.attempts for row in rows) == [0] * 4 + [1] * THRESHOLD
    platform.rows("UPDATE breakers SET probe_at = now()")
    make_due(platform)
    accounting.will_always(answer(503, delay_seconds=0.5))
    service = Service(url=accounting.url("/api"))
    with ExitStack() as stack, ThreadPoolExecutor(4) as threads:  # half-open: four workers, one probe
        workers = [
            stack.enter_context(delivering(platform, app, services={"accounting": service})) for _ in range(4)
        ]
        list(threads.map(lambda place: workers[place].deliver([rows[place].id]), range(4)))
    assert len(accounting.requests) == THRESHOLD + 1
    accounting.will_always(answer(204))
    for _ in range(2):
        platform.rows("UPDATE breakers SET probe_at = now()")
        make_due(platform)
        deliverer.deliver(ids(platform, "effect"))
    assert {row.state for row in deliveries(platform, "effect")} == {"delivered"}
    assert platform.rows("SELECT count(*) FROM breakers") == [(0,)]


def test_effect_falls_back_at_its_time_though_the_breaker_is_open(
    platform: Platform, deliverer: PatientDeliverer, accounting: WebhookReceiver, office: WebhookReceiver
) -> None:
    platform.rows(
        "INSERT INTO breakers (dependency, failures, opened_at, probe_at) "
        "VALUES ('service:accounting', 5, now(), now() + interval '5 minutes')"
    )
    invoiced(platform, "G1")
    platform.rows("UPDATE deliveries SET created_at = now() - interval '13 hours'")
    for _ in range(2):
        deliverer.deliver(ids(platform, "effect"))
    assert accounting.requests == []
    assert len(office.requests) == 1
    assert effects(platform)["book"].state == "failed"


def test_effect_is_looked_at_again_when_its_time_is_up_though_the_breaker_stays_open(
    platform: Platform, deliverer: PatientDeliverer
) -> None:
    platform.rows(
        "INSERT INTO breakers (dependency, failures, opened_at, probe_at) "
        "VALUES ('service:accounting', 5, now(), now() + interval '5 minutes')"
    )
    invoiced(platform, "G2")
    platform.rows("UPDATE deliveries SET created_at = now() - interval '11 hours 59 minutes'")
    deliverer.deliver(ids(platform, "effect"))
    in_time = "SELECT announce_at < now() + interval '61 seconds' FROM deliveries WHERE kind = 'effect'"
    assert platform.rows(in_time) == [(True,)]


@pytest.mark.parametrize("has_breaker", [False, True])
@pytest.mark.parametrize("status", [503, 204])
def test_effect_that_could_not_be_tried_until_its_time_is_tried_once(
    platform: Platform,
    deliverer: PatientDeliverer,
    accounting: WebhookReceiver,
    office: WebhookReceiver,
    status: int,
    *,
    has_breaker: bool,
) -> None:
    accounting.will_always(answer(status))
    if has_breaker:  # and its probe is due
        platform.rows(
            "INSERT INTO breakers (dependency, failures, opened_at, probe_at) "
            "VALUES ('service:accounting', 5, now() - interval '5 minutes', now())"
        )
    invoiced(platform, f"L{status}{has_breaker}")
    platform.rows("UPDATE deliveries SET created_at = now() - interval '13 hours'")
    for _ in range(2):
        deliverer.deliver(ids(platform, "effect"))
    assert len(accounting.requests) == 1
    states = {name: row.state for name, row in effects(platform).items()}
    if status == 204:
        assert states == {"book": "delivered"}
    else:
        assert states == {"book": "failed", "complain": "delivered"}
        assert "503" in json.loads(office.requests[0].body)["reason"]


def test_worker_that_lacks_the_service_falls_back_when_its_time_is_up(
    platform: Platform, app: Celery, deliverer: PatientDeliverer, office: WebhookReceiver
) -> None:
    invoiced(platform, "M1")
    platform.rows("UPDATE deliveries SET created_at = now() - interval '13 hours'")
    with delivering(platform, app, services={"office": Service(url=office.url(""))}) as ignorant:
        for _ in range(2):
            ignorant.deliver(ids(platform, "effect"))
    assert {name: row.state for name, row in effects(platform).items()} == {
        "book": "failed",
        "complain": "delivered",
    }
    assert "accounting" in json.loads(office.requests[0].body)["reason"]


@pytest.mark.parametrize("attempts", [0, 1])
def test_effect_that_nobody_knows_is_given_up_after_days(
    platform: Platform, deliverer: PatientDeliverer, accounting: WebhookReceiver, attempts: int
) -> None:
    invoiced(platform, f"N{attempts}")
    platform.rows(
        "UPDATE deliveries SET target = 'forgotten', attempts = :attempts WHERE kind = 'effect'",
        attempts=attempts,
    )
    deliverer.deliver(ids(platform, "effect"))
    assert effects(platform)["forgotten"].state == "pending"
    platform.rows("UPDATE deliveries SET created_at = now() - interval '4 days'")
    make_due(platform)
    deliverer.deliver(ids(platform, "effect"))
    assert effects(platform)["forgotten"].state == "failed"
    assert accounting.requests == []


def test_refusal_that_comes_after_its_claim_ran_out_writes_no_fallback(
    platform: Platform, deliverer: PatientDeliverer, accounting: WebhookReceiver
) -> None:
    def refuse_late(exchange: Exchange) -> None:
        platform.rows("UPDATE deliveries SET announce_at = now() + interval '1 minute' WHERE kind = 'effect'")
        answer(400)(exchange)

    accounting.will(refuse_late)
    invoiced(platform, "K1")
    deliverer.deliver(ids(platform, "effect"))
    assert {name: row.state for name, row in effects(platform).items()} == {"book": "pending"}


def test_code_of_the_resource_that_fails_burns_no_attempt_and_no_thread(
    platform: Platform,
    deliverer: PatientDeliverer,
    accounting: WebhookReceiver,
    office: WebhookReceiver,
) -> None:
    invoiced(platform, "H1", "H2")
    platform.rows("UPDATE jobs SET result = '{}' WHERE result ->> 'number' = 'H1'")
    deliverer.deliver(ids(platform, "effect"))
    rows = sorted((row.state, row.attempts) for row in deliveries(platform, "effect"))
    assert rows == [("delivered", 1), ("pending", 0)]
    platform.rows("UPDATE deliveries SET created_at = now() - interval '4 days'")
    make_due(platform)
    for _ in range(2):
        deliverer.deliver(ids(platform, "effect"))
    assert "failed" in {row.state for row in deliveries(platform, "effect")}
    assert len(office.requests) == 1, "the fallback"


def test_fault_of_the_sender_burns_no_attempt_tells_no_secret_and_ends(
    platform: Platform,
    deliverer: PatientDeliverer,
    office: WebhookReceiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def trip(*_: object) -> None:
        raise RuntimeError("s3cret")

    invoiced(platform, "F1")
    monkeypatch.setattr(ServiceClient, "send", trip)
    deliverer.deliver(ids(platform, "effect"))
    row = effects(platform)["book"]
    assert (row.state, row.attempts) == ("pending", 0)
    assert datetime.now(UTC) < row.announce_at < datetime.now(UTC) + timedelta(minutes=2)
    platform.rows("UPDATE deliveries SET created_at = now() - interval '4 days'")
    make_due(platform)
    deliverer.deliver(ids(platform, "effect"))
    assert effects(platform)["book"].state == "failed"
    reasons = {getattr(record, "reason", "") for record in caplog.records}
    assert "RuntimeError in our own code" in reasons
    assert not any("s3cret" in reason for reason in [*reasons, caplog.text])


def test_worker_that_lacks_the_service_leaves_it_to_others(
    platform: Platform, app: Celery, deliverer: PatientDeliverer, accounting: WebhookReceiver
) -> None:
    invoiced(platform, "I1")
    with delivering(platform, app, services={}) as ignorant:
        ignorant.deliver(ids(platform, "effect"))
    row = effects(platform)["book"]
    assert (row.state, row.attempts) == ("pending", 0)
    make_due(platform)
    deliverer.deliver(ids(platform, "effect"))
    assert effects(platform)["book"].state == "delivered"


def test_service_that_is_not_set_is_told_at_start(platform: Platform) -> None:
    with pytest.raises(ConfigurationError, match="WAYBILL_SERVICES: accounting is missing"):
        platform.container.check_services()
