"""The webhook sender against a real receiver on loopback, well-behaved and not."""

import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event
from time import monotonic
from typing import Any

import pytest

from models.deliveries.delivery_policy import Answer
from models.deliveries.endpoint_secrets import new_secret
from tasks.webhook import MAX_ANSWER_BYTES, WebhookSender, trust
from tests.kit import receiver as behave
from tests.kit.authority import CertificateAuthority
from tests.kit.receiver import WebhookReceiver

HOST = "hooks.example.com"
SECRET = new_secret()
BODY = '{"type":"job.succeeded","data":{"name":"Fjällräven"}}'.encode()
SHORT = timedelta(seconds=1)
SOON = 10
"""Seconds: what is not held to a deadline takes 15, or for ever."""


class Dns:
    """Answers each question with the next of its answers (the last one stays), and counts the questions."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)

    def __call__(self, host: str, port: int, *, type: int) -> Sequence[tuple[int, int, int, str, Any]]:
        self.asked.append(host)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, type, 6, "", (address, port))
            for address in answer
        ]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls(authority: CertificateAuthority) -> ssl.SSLContext:
    return trust(str(authority.ca_file))


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


@pytest.fixture
def secure_receiver(authority: CertificateAuthority) -> Iterator[WebhookReceiver]:
    with WebhookReceiver(authority.server_context(HOST)) as receiver:
        yield receiver


@pytest.fixture
def sender(tls: ssl.SSLContext) -> WebhookSender:
    return WebhookSender(version="1.2.3", tls=tls, allow_private=True, resolver=Dns(["127.0.0.1"]))


@pytest.fixture
def hasty_sender(tls: ssl.SSLContext) -> WebhookSender:
    return WebhookSender(
        version="1.2.3", tls=tls, allow_private=True, resolver=Dns(["127.0.0.1"]), deadline=SHORT
    )


@pytest.fixture
def brisk_sender(tls: ssl.SSLContext) -> WebhookSender:
    """For answers that must come, though what follows them never ends."""
    return WebhookSender(
        version="1.2.3",
        tls=tls,
        allow_private=True,
        resolver=Dns(["127.0.0.1"]),
        deadline=timedelta(seconds=5),
    )


def send(sender: WebhookSender, url: str, secrets: Sequence[str] = (SECRET,), body: bytes = BODY) -> Answer:
    return sender.send(url, secrets, "evt-1", datetime.now(UTC), body)


def timed(work: Callable[[], Answer]) -> tuple[Answer, float]:
    start = monotonic()
    return work(), monotonic() - start


# -- what is sent ---------------------------------------------------------------------------------------


def test_signed_body_arrives_byte_for_byte(receiver: WebhookReceiver, sender: WebhookSender) -> None:
    answer = send(sender, receiver.url("/hook?tenant=7"))

    assert answer == Answer(204)
    request = receiver.requests[0]
    assert request.method == "POST"
    assert request.path == "/hook?tenant=7"
    assert request.body == BODY
    assert request.verify(SECRET)["type"] == "job.succeeded"
    assert request.headers["webhook-id"] == "evt-1"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == "Waybill/1.2.3"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"


def test_both_secrets_verify_during_a_rotation(receiver: WebhookReceiver, sender: WebhookSender) -> None:
    new = new_secret()

    send(sender, receiver.url(), [new, SECRET])

    receiver.requests[0].verify(new)
    receiver.requests[0].verify(SECRET)


def test_large_body_arrives_whole(secure_receiver: WebhookReceiver, sender: WebhookSender) -> None:
    body = b'"' + b"x" * 3_000_000 + b'"'

    assert send(sender, secure_receiver.url(host=HOST), body=body) == Answer(204)
    assert secure_receiver.requests[0].body == body


def test_proxy_of_the_environment_is_ignored(
    receiver: WebhookReceiver, sender: WebhookSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert send(sender, receiver.url()) == Answer(204)


# -- what is answered -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 404, 410, 429, 500, 503])
def test_refusal_is_reported_with_its_status(
    receiver: WebhookReceiver, sender: WebhookSender, status: int
) -> None:
    receiver.will(behave.answer(status, b"secret of the receiver"))

    assert send(sender, receiver.url()) == Answer(status, f"127.0.0.1 answered {status}")


def test_retry_after_comes_along(receiver: WebhookReceiver, sender: WebhookSender) -> None:
    receiver.will(behave.answer(503, headers={"Retry-After": "120"}))

    assert send(sender, receiver.url()).retry_after == timedelta(minutes=2)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(receiver: WebhookReceiver, sender: WebhookSender, status: int) -> None:
    with WebhookReceiver() as elsewhere:
        receiver.will(behave.redirect(elsewhere.url(), status))

        answer = send(sender, receiver.url())

        assert answer.status == status
        assert not answer.is_delivered
        assert elsewhere.requests == []
    assert len(receiver.requests) == 1


def test_informational_answers_are_passed_over(receiver: WebhookReceiver, sender: WebhookSender) -> None:
    receiver.will(
        behave.raw(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
            b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
        )
    )

    assert send(sender, receiver.url()) == Answer(202)


def test_status_stands_though_the_body_is_cut_short(receiver: WebhookReceiver, sender: WebhookSender) -> None:
    receiver.will(behave.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort"))

    assert send(sender, receiver.url()) == Answer(200)


def test_answer_of_a_receiver_that_hangs_up_early_still_counts(sender: WebhookSender) -> None:
    with WebhookReceiver(reads_body=False) as receiver:
        receiver.will(behave.answer(413))

        assert send(sender, receiver.url(), body=b"x" * 8_000_000).status == 413


# -- what goes wrong on the way -------------------------------------------------------------------------


def test_nobody_listening_is_an_answer(sender: WebhookSender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    assert send(sender, f"http://{HOST}:{port}/") == Answer(None, f"{HOST}: connection refused")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (behave.close(), "connection lost before an answer"),
        (behave.reset(), "connection lost before an answer"),
        (behave.raw(b"HTTP/1.1 200 OK\r\nX-Cut: "), "connection lost before an answer"),
        (behave.raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "the answer is not HTTP/1.1"),
        (behave.raw(b"\x00\xff" * 500), "the answer is not HTTP/1.1"),
        (behave.raw(b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n"), "the answer is not HTTP/1.1"),
        (behave.endless_head(), "the answer is not HTTP/1.1"),
    ],
)
def test_broken_answer_is_a_fault_of_the_host(
    receiver: WebhookReceiver, sender: WebhookSender, behaviour: behave.Behaviour, reason: str
) -> None:
    receiver.will(behaviour)

    answer = send(sender, receiver.url(host=HOST))

    assert answer == Answer(None, f"{HOST}: {reason}")
    assert answer.blames_host


def test_dns_without_an_answer_is_reported_without_details(tls: ssl.SSLContext) -> None:
    def resolver(host: str, port: int, *, type: int) -> Sequence[tuple[int, int, int, str, Any]]:
        raise socket.gaierror(socket.EAI_AGAIN, "10.1.2.3 did not answer")

    sender = WebhookSender(version="1", tls=tls, resolver=resolver)

    assert send(sender, f"https://{HOST}/") == Answer(None, f"{HOST}: DNS gives no address")


def test_forbidden_address_is_never_connected_to(
    secure_receiver: WebhookReceiver, tls: ssl.SSLContext
) -> None:
    sender = WebhookSender(version="1", tls=tls, resolver=Dns(["127.0.0.1"]))

    answer = send(sender, secure_receiver.url(host=HOST))

    assert answer == Answer(None, f"{HOST} resolves to an address that callbacks may not reach")
    assert secure_receiver.requests == []


@pytest.mark.parametrize("url", ["http://hooks.example.com/", "https://127.0.0.1/", "https://a@example.com/"])
def test_url_against_the_rules_is_refused_without_asking_dns(tls: ssl.SSLContext, url: str) -> None:
    dns = Dns(["127.0.0.1"])

    answer = send(WebhookSender(version="1", tls=tls, resolver=dns), url)

    assert answer.is_refused
    assert not answer.blames_host
    assert dns.asked == []


# -- pinning --------------------------------------------------------------------------------------------


def test_rebinding_finds_no_second_question(
    receiver: WebhookReceiver, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    dns = Dns(["127.0.0.1"], ["127.0.0.2"])
    system_asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *question, **_: system_asked.append(question))
    sender = WebhookSender(version="1", tls=tls, allow_private=True, resolver=dns)

    assert send(sender, receiver.url(host=HOST)) == Answer(204)

    assert dns.asked == [HOST]
    assert system_asked == []
    assert receiver.requests[0].headers["host"] == f"{HOST}:{receiver.port}"


def test_next_address_is_tried_where_one_refuses(receiver: WebhookReceiver, tls: ssl.SSLContext) -> None:
    dns = Dns(["::1", "127.0.0.3", "127.0.0.1"])
    sender = WebhookSender(version="1", tls=tls, allow_private=True, resolver=dns)

    assert send(sender, receiver.url(host=HOST)) == Answer(204)
    assert dns.asked == [HOST]


# -- TLS ------------------------------------------------------------------------------------------------


def test_certificate_is_checked_for_the_name_not_the_address(
    secure_receiver: WebhookReceiver, sender: WebhookSender
) -> None:
    assert send(sender, secure_receiver.url(host=HOST)) == Answer(204)
    assert secure_receiver.requests[0].headers["host"] == f"{HOST}:{secure_receiver.port}"


def test_certificate_of_another_name_is_refused_before_anything_is_sent(
    secure_receiver: WebhookReceiver, sender: WebhookSender
) -> None:
    answer = send(sender, secure_receiver.url(host="other.example.com"))

    assert answer.status is None
    assert answer.error is not None
    assert answer.error.startswith("other.example.com: certificate refused (")
    assert secure_receiver.requests == []


def test_certificate_for_a_name_does_not_cover_the_bare_address(
    secure_receiver: WebhookReceiver, sender: WebhookSender
) -> None:
    answer = send(sender, secure_receiver.url())

    assert "certificate refused" in str(answer.error)
    assert secure_receiver.requests == []


def test_bare_address_is_checked_against_a_certificate_for_it(
    authority: CertificateAuthority, sender: WebhookSender
) -> None:
    with WebhookReceiver(authority.server_context("127.0.0.1")) as receiver:
        assert send(sender, receiver.url()) == Answer(204)


def test_expired_certificate_is_refused(authority: CertificateAuthority, sender: WebhookSender) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    with WebhookReceiver(authority.server_context(HOST, not_after=yesterday)) as receiver:
        answer = send(sender, receiver.url(host=HOST))

        assert "certificate refused" in str(answer.error)
        assert receiver.requests == []


def test_unknown_authority_is_refused(secure_receiver: WebhookReceiver) -> None:
    sender = WebhookSender(version="1", tls=trust(), allow_private=True, resolver=Dns(["127.0.0.1"]))

    answer = send(sender, secure_receiver.url(host=HOST))

    assert "certificate refused" in str(answer.error)
    assert secure_receiver.requests == []


def test_receiver_without_tls_gets_nothing_readable(receiver: WebhookReceiver, sender: WebhookSender) -> None:
    answer = send(sender, f"https://{HOST}:{receiver.port}/")

    assert answer.status is None
    assert receiver.requests == []


# -- limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [behave.hang(), behave.trickle_head(0.05)], ids=["hang", "trickle"])
def test_slow_receiver_holds_the_sender_no_longer_than_the_deadline(
    receiver: WebhookReceiver, hasty_sender: WebhookSender, behaviour: behave.Behaviour
) -> None:
    receiver.will(behaviour)

    answer, seconds = timed(lambda: send(hasty_sender, receiver.url(host=HOST)))

    assert answer == Answer(None, f"{HOST}: no answer within 1 s")
    assert 0.9 < seconds < SOON


def test_slow_receiver_behind_tls_is_held_to_the_deadline_too(
    secure_receiver: WebhookReceiver, hasty_sender: WebhookSender
) -> None:
    secure_receiver.will(behave.trickle_head(0.05))

    answer, seconds = timed(lambda: send(hasty_sender, secure_receiver.url(host=HOST)))

    assert answer.status is None
    assert seconds < SOON


def test_receiver_that_trickles_its_body_has_said_yes_and_is_left(
    receiver: WebhookReceiver, brisk_sender: WebhookSender
) -> None:
    receiver.will(behave.trickle_body(0.05))

    answer, seconds = timed(lambda: send(brisk_sender, receiver.url()))

    assert answer == Answer(200)
    assert seconds < 5 + SOON


def test_receiver_that_never_reads_is_held_to_the_deadline(hasty_sender: WebhookSender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts; nobody reads
        url = f"http://{HOST}:{silent.getsockname()[1]}/"

        answer, seconds = timed(lambda: send(hasty_sender, url, body=b"x" * 30_000_000))

    assert answer == Answer(None, f"{HOST}: no answer within 1 s")
    assert seconds < SOON


def test_stuck_tls_handshake_is_held_to_the_deadline(hasty_sender: WebhookSender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://{HOST}:{silent.getsockname()[1]}/"

        answer, seconds = timed(lambda: send(hasty_sender, url))

    assert answer == Answer(None, f"{HOST}: no answer within 1 s")
    assert seconds < SOON


def test_stuck_dns_is_held_to_the_deadline(tls: ssl.SSLContext) -> None:
    release = Event()

    def resolver(host: str, port: int, *, type: int) -> Sequence[tuple[int, int, int, str, Any]]:
        release.wait()
        return []

    sender = WebhookSender(version="1", tls=tls, resolver=resolver, deadline=SHORT)

    answer, seconds = timed(lambda: send(sender, f"https://{HOST}/"))
    release.set()

    assert answer == Answer(None, f"{HOST}: no answer within 1 s")
    assert seconds < SOON


def test_endless_answer_is_left_after_64_kib(receiver: WebhookReceiver, sender: WebhookSender) -> None:
    receiver.will(behave.endless_body())

    answer, seconds = timed(lambda: send(sender, receiver.url()))

    assert answer == Answer(200)
    assert seconds < SOON


def test_no_byte_beyond_64_kib_is_read(
    receiver: WebhookReceiver, sender: WebhookSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    class CountingSocket(socket.socket):
        def recv(self, *arguments: int) -> bytes:
            data = super().recv(*arguments)
            read.append(len(data))
            return data

    receiver.will(behave.endless_body())
    monkeypatch.setattr("tasks.webhook.socket.socket", CountingSocket)

    assert send(sender, receiver.url()) == Answer(200)
    assert sum(read) == MAX_ANSWER_BYTES


def test_many_threads_share_one_sender(secure_receiver: WebhookReceiver, sender: WebhookSender) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: send(sender, secure_receiver.url(host=HOST)), range(64)))

    assert answers == [Answer(204)] * 64
    for request in secure_receiver.wait_for(64):
        request.verify(SECRET)
