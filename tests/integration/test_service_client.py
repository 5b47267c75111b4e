"""The HTTP client of a third party against a real one on loopback that is slow on purpose."""

import socket
import threading
from collections.abc import Iterator

import pytest
from pydantic import SecretStr, ValidationError

from deploy.ports import free_port
from models.deliveries.delivery_policy import Answer
from models.effects import ServiceCall
from models.settings import Service
from tasks.service_client import ServiceClient
from tests.kit import receiver as behave
from tests.kit.authority import CertificateAuthority
from tests.kit.receiver import WebhookReceiver

CALL = ServiceCall(method="POST", path="/bookings", json={"invoice": "A1"})


@pytest.fixture(params=["http", "https"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WebhookReceiver]:
    if request.param == "http":
        with WebhookReceiver() as made:
            yield made
        return
    authority = CertificateAuthority(tmp_path_factory.mktemp("authority"))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    with WebhookReceiver(authority.server_context("127.0.0.1")) as made:
        yield made


def client(service: WebhookReceiver, timeout_seconds: float) -> ServiceClient:
    return ServiceClient(
        "accounting", Service(url=service.url(""), timeout_seconds=timeout_seconds), user_agent="test"
    )


def test_call_gets_its_answer(service: WebhookReceiver) -> None:
    service.will(behave.answer(200, b"x" * 1000), behave.answer(503))
    hasty = client(service, 10)
    assert hasty.send(CALL, "key-1") == Answer(200)
    assert hasty.send(CALL, "key-1").status == 503
    assert [one.headers["idempotency-key"] for one in service.requests] == ["key-1"] * 2


@pytest.mark.timeout(60)
def test_service_that_trickles_its_head_is_given_up_in_time(service: WebhookReceiver) -> None:
    service.will(behave.trickle_head(0.05))
    assert client(service, 1).send(CALL, "key-1") == Answer(None, "accounting: no answer in time")


@pytest.mark.timeout(60)
def test_service_that_trickles_its_body_has_answered_and_is_left(service: WebhookReceiver) -> None:
    service.will(behave.trickle_body(0.05))
    hasty = client(service, 5)
    assert hasty.send(CALL, "key-1") == Answer(200)
    assert hasty.send(CALL, "key-2") == Answer(204)


@pytest.mark.timeout(60)
def test_service_that_says_nothing_is_given_up_in_time(service: WebhookReceiver) -> None:
    service.will(behave.hang())
    assert client(service, 1).send(CALL, "key-1") == Answer(None, "accounting: no answer in time")


@pytest.mark.timeout(60)
def test_name_that_is_not_found_in_time_is_given_up(
    service: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    hasty = client(service, 1)
    with monkeypatch.context() as silent:
        silent.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(90))
        assert hasty.send(CALL, "key-1") == Answer(None, "accounting: no answer in time")
    answered.set()
    assert client(service, 10).send(CALL, "key-1") == Answer(204)


def test_name_that_is_not_known_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    nowhere = Service(url="http://accounting.example", timeout_seconds=10)
    answer = ServiceClient("accounting", nowhere, user_agent="test").send(CALL, "key-1")
    assert answer == Answer(None, "accounting: cannot be reached (NameResolutionError)")


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
def test_name_that_is_none_is_told_as_what_it_is(host: str) -> None:
    answer = ServiceClient("accounting", Service(url=f"http://{host}"), user_agent="test").send(CALL, "key-1")
    assert answer.status is None
    assert str(answer.error).startswith("accounting: cannot be ")


@pytest.mark.parametrize("value", ["s3cret\n", " s3cret", "s3\0cret", "s3cret €", ""])
def test_header_that_cannot_be_sent_is_refused_at_start_and_not_repeated(value: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Service(url="http://127.0.0.1", headers={"X-Key": SecretStr(value)})
    assert "X-Key must be one line" in str(refused.value)
    assert "cret" not in str(refused.value).replace("SecretStr", "")


def test_call_that_cannot_be_made_is_an_answer_without_its_text(service: WebhookReceiver) -> None:
    hasty = client(service, 10)
    hasty._headers["X-Key"] = "s3cret\n"
    answer = hasty.send(CALL, "key-1")
    assert answer == Answer(None, "accounting: cannot be called as it is configured")


def test_refused_connection_is_told_as_what_it_is() -> None:
    nowhere = Service(url=f"http://127.0.0.1:{free_port()}", timeout_seconds=10)
    answer = ServiceClient("accounting", nowhere, user_agent="test").send(CALL, "key-1")
    assert answer == Answer(None, "accounting: cannot be reached (NewConnectionError)")


def test_service_that_hangs_up_is_told_as_what_it_is(service: WebhookReceiver) -> None:
    service.will(behave.close())
    answer = client(service, 10).send(CALL, "key-1")
    assert answer.status is None
    assert "cannot be reached" in str(answer)
