"""Settings: each bad value is one line that names its variable."""

import os
from pathlib import Path

import pytest

from models.errors import ConfigurationError
from models.settings import load_settings


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("WAYBILL_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://localhost/x"),
        ("DATABASE_URL", "localhost"),
        ("DATABASE_URL", "postgresql://u:p@host:port/x"),
        ("DATABASE_URL", "postgresql://u:p@host:99999/x"),
        ("DATABASE_URL", "postgresql://u:p@h1:1,h2:99999/x?target_session_attrs=read-write"),
        ("DATABASE_URL", "postgresql://u:p@h1:1,h2:2/x"),
        ("DATABASE_URL", "postgresql://u:p@h1:1,h2:2/x?target_session_attrs=any"),
        ("BROKER_URL", "redis://localhost"),
        ("BROKER_URL", "amqp://a//;redis://b"),
        ("BROKER_URL", "amqp://a//;memory://"),
        ("BROKER_URL", "memory://;amqp://a//"),
        ("BROKER_URL", "amqp://a/one;amqp://b/other"),
        ("REDIS_URL", "http://localhost"),
        ("API_PORT", "http"),
        ("API_PORT", "65536"),
        ("API_PORT", "-1"),
        ("FLOWER_PORT", ""),
        ("WORKER_CONCURRENCY", "0"),
        ("RATE_LIMITS", "maybe"),
        ("RATE_LIMITS", "write=fast"),
        ("TRUSTED_PROXIES", "10.0.0.0/33"),
        ("TRUSTED_PROXIES", "proxy.example.com"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "https://app.example.com/"),
        ("CORS_ORIGINS", "app.example.com"),
        ("CORS_ORIGINS", "https://*.example.com"),
        ("MAX_OPEN_JOBS", "-1"),
        ("MAX_OPEN_AGE", "1h"),
        ("CALLBACK_ALLOW_PRIVATE", "perhaps"),
        ("AMQP_PRINCIPALS", "{"),
        ("AMQP_PRINCIPALS", "[]"),
        ("AMQP_PRINCIPALS", '{"a": 1}'),
        ("AMQP_REPLY_QUEUES", "replies[.*"),
        ("AMQP_REPLY_QUEUES", r"reply\.\{user}"),
        ("BROKER_PASSWORDS", "geheim"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_bad_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"WAYBILL_{name}", value)
    with pytest.raises(ConfigurationError, match=f"^WAYBILL_{name}: ") as caught:
        load_settings()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DATABASE_URL", "postgresql://u:s3cret@host:port/x"),
        ("DATABASE_URL", "postgresql://u:un@s3cret@host:1/x"),
        ("DATABASE_URL", "postgresql://u:un@s3/cret@host:1/x"),
        ("DATABASE_URL", "postgresql://u:un@s3?cret@host:1/x"),
        ("DATABASE_URL", "postgresql://u:un@s3cret@h1,h2/x?target_session_attrs=read-write"),
        ("BROKER_URL", "amqp://u:s3/cret@host:1//"),
        ("BROKER_URL", "amqp://h:1//;amqp://u:s3?cret@host:1//"),
        ("REDIS_URL", "redis://:s3#cret@host:1/0"),
    ],
)
def test_password_is_not_repeated_in_the_complaint(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    monkeypatch.setenv(f"WAYBILL_{name}", url)
    with pytest.raises(ConfigurationError, match=name) as caught:
        load_settings()
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "postgres"])
def test_database_url_is_taken_in_every_usual_spelling(scheme: str) -> None:
    settings = load_settings(database_url=f"{scheme}://u:p@h:1/d?sslmode=require")
    assert settings.database_url == "postgresql+psycopg://u:p@h:1/d?sslmode=require"


def test_database_url_may_name_several_hosts() -> None:
    several = "u:p@h1:1,[::1]:2/d?target_session_attrs=read-write"
    assert (
        load_settings(database_url=f"postgresql://{several}").database_url
        == f"postgresql+psycopg://{several}"
    )


def test_broker_url_may_be_a_list() -> None:
    settings = load_settings(broker_url=" amqp://u:p@a:1/v ;amqp://u:p@b:2/v/; ")
    assert settings.broker_urls == ("amqp://u:p@a:1/v", "amqp://u:p@b:2/v/")
    assert settings.broker_url == ";".join(settings.broker_urls)
    assert settings.has_broker


def test_lists_are_comma_separated_and_principals_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYBILL_RESOURCES", " shop.invoices, shop.orders ,")
    monkeypatch.setenv("WAYBILL_AMQP_PRINCIPALS", '{"erp": "erp@example.org"}')
    settings = load_settings()
    assert settings.resources == ("shop.invoices", "shop.orders")
    assert settings.amqp_principals == {"erp": "erp@example.org"}


def test_environment_outranks_env_file_outranks_what_up_wrote(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tmp_path / ".waybill" / "run"
    run.mkdir(parents=True)
    (run / "waybill.env").write_text(
        "WAYBILL_API_PORT=1\nWAYBILL_FLOWER_PORT=1\nWAYBILL_DATABASE_URL=postgresql://h/up\n"
    )
    (tmp_path / ".env").write_text("WAYBILL_API_PORT=2\nWAYBILL_FLOWER_PORT=2\nSOMEBODY_ELSES=x\n")
    monkeypatch.setenv("WAYBILL_API_PORT", "3")
    settings = load_settings()
    assert (settings.api_port, settings.flower_port) == (3, 2)
    assert settings.database_url == "postgresql+psycopg://h/up"
    assert load_settings(with_run_file=False).database_url == ""
    assert load_settings(api_port=4).api_port == 4


def test_env_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(ConfigurationError, match=r"\.env"):
        load_settings()


def test_secrets_are_not_shown() -> None:
    assert "s3cret" not in repr(load_settings(admin_password="s3cret", jwt_keys="s3cret"))
