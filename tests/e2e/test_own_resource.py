"""The README's own resource, as it stands there: migration, HTTP, AMQP, OpenAPI, metrics."""

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pika
import psycopg
import pytest

from tests.e2e.conftest import OwnResource, Platform
from tests.kit import readme
from tests.kit.upstream import Upstream


@pytest.fixture
def upstream(full: Platform) -> Iterator[Upstream]:
    url = pika.URLParameters(_broker_url(full))
    upstream = Upstream(pika.BlockingConnection(url), "waybill")
    yield upstream
    upstream.close()


def _broker_url(full: Platform) -> str:
    text = (full.up.directory.run / "waybill.env").read_text()
    found = re.search(r"^WAYBILL_BROKER_URL='(.*)'$", text, re.MULTILINE)
    assert found
    return found[1]


def _invoice(**members: Any) -> dict[str, Any]:
    return {"number": uuid.uuid4().hex[:12], "amount": "12.50", "date": "2026-02-28", **members}


def test_section_holds_one_python_block_that_ends_in_the_declaration() -> None:
    found = readme.blocks(readme.section("Add your own resource"), "python")

    assert len(found) == 1
    assert re.search(r"^RESOURCE = ResourceType\($.*^\)$\n\Z", found[0], re.MULTILINE | re.DOTALL)


def test_migration_is_asked_for_written_and_run(own_resource: OwnResource) -> None:
    without, new, run, again = own_resource.steps

    assert without.returncode == 1
    assert "no migration makes invoices" in without.stderr
    assert (new.returncode, run.returncode) == (0, 0), new.stderr + run.stderr
    assert again.returncode == 2
    assert "nothing to write" in again.stderr
    with psycopg.connect(own_resource.database_url.replace("+psycopg", "")) as connection:
        columns = connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'invoices'"
        ).fetchall()
        constraints = connection.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = 'waybill.invoices'::regclass"
        ).fetchall()
    assert {("number", "character varying"), ("amount", "numeric"), ("date", "date")} <= set(columns)
    assert ("uq_invoices_number",) in constraints


def test_decimal_and_date_come_back_as_they_went(full: Platform) -> None:
    sent = _invoice(amount="1234567890.10", customer="Ada")

    created = full.client.outcome("POST", "invoices", sent)

    assert created.status == 201, created.body
    invoice = created.json
    assert {name: invoice[name] for name in sent} == sent
    patched = full.client.outcome("PATCH", f"invoices/{invoice['id']}", {"amount": 0.1, "customer": None})
    assert patched.status == 200, patched.body
    assert patched.json["amount"] in ("0.1", "0.10")
    read = full.client.call("GET", f"invoices/{invoice['id']}")
    assert read.json["amount"] == "0.10"
    assert (read.json["date"], read.json["customer"], read.json["version"]) == (sent["date"], None, 2)
    assert read.headers["ETag"] == '"2"'


def test_list_finds_by_number_and_refuses_what_the_table_lacks(full: Platform) -> None:
    sent = _invoice()
    full.client.outcome("POST", "invoices", sent)

    found = full.client.call("GET", f"invoices?q={sent['number'].upper()}&sort=-createdAt")

    assert [item["number"] for item in found.json["items"]] == [sent["number"]]
    for query in ("sort=name", "status=ACTIVE"):
        assert full.client.call("GET", f"invoices?{query}").status == 400, query


@pytest.mark.parametrize("amount", ["much", "-1", "1.005", "99999999999.00", None, True])
def test_bad_amount_is_refused_with_the_member_named(full: Platform, amount: Any) -> None:
    answer = full.client.call("POST", "invoices", _invoice(amount=amount))

    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert [detail["field"] for detail in answer.json["details"]] == ["amount"]


def test_number_that_is_taken_fails_the_job_with_409(full: Platform) -> None:
    first, second = _invoice(), _invoice()
    assert full.client.outcome("POST", "invoices", first).status == 201
    other = full.client.outcome("POST", "invoices", second).json

    again = full.client.call("POST", "invoices", _invoice(number=first["number"]))
    renamed = full.client.call("PATCH", f"invoices/{other['id']}", {"number": first["number"]})

    for answer in (again, renamed):
        assert answer.status == 202
        job = full.client.done(answer.json["id"])
        assert (job["state"], job["error"]["status"], job["error"]["error"]) == ("failed", 409, "Conflict")


def test_upstream_message_makes_one(full: Platform, upstream: Upstream) -> None:
    sent = _invoice(amount=99.9)

    message_id = upstream.publish("invoices.create", sent)

    assert upstream.reply(message_id).properties.type == "job.accepted"
    final = upstream.reply(message_id)
    assert final.properties.type == "job.succeeded"
    read = full.client.call("GET", f"invoices/{final.document['resourceId']}").json
    assert (read["number"], read["amount"]) == (sent["number"], "99.90")


def test_openapi_describes_it(full: Platform) -> None:
    document = full.client.call("GET", "/openapi.json").json

    assert set(document["paths"]["/api/v1/invoices"]) == {"get", "post"}
    assert set(document["paths"]["/api/v1/invoices/{id}"]) == {"get", "put", "patch", "delete"}
    read = document["components"]["schemas"]["invoices.Read"]["properties"]
    assert {"number", "amount", "date", "customer", "ownerId", "version"} <= set(read)
    assert "#/components/schemas/invoices.Create" in json.dumps(document["paths"]["/api/v1/invoices"])


def test_metrics_tell_its_route_apart(full: Platform) -> None:
    full.client.call("GET", "invoices")

    text = full.client.call("GET", "/metrics").body.decode()

    counted = r'^waybill_http_request_seconds_count\{.*route="/api/v1/invoices".*\} '
    assert re.search(counted, text, re.MULTILINE)
