"""Every setting, read once at the edge from ``WAYBILL_*`` and ``.env``; nowhere else."""

import json
import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from models.database_hosts import has_several_hosts, hosts_of
from models.errors import ConfigurationError
from models.quotas import parse_quotas

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?")

MEMORY = "memory://"
MEMORY_BROKER = "memory://localhost/"
"""Celery's broker where none is named. kombu warns at each connection unless a host is."""


_HEADER_VALUE = re.compile(r"[!-~\x80-\xff]([\t -~\x80-\xff]*[!-~\x80-\xff])?")


class Service(BaseModel):
    """A third party that effects call.

    Attributes:
        url: What the calls' paths are appended to.
        headers: Sent with every call; secret, as they may hold a key.
        timeout_seconds: For an answer as a whole. Connecting to an address has up to 5 s of its own.
        at_once: Calls that one worker process has under way at a time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str = Field(pattern=r"^https?://[!-~]+$", max_length=2048)
    headers: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")], SecretStr] = {}
    timeout_seconds: float = Field(10, gt=0, le=30)
    at_once: int = Field(4, ge=1, le=16)

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            if not _HEADER_VALUE.fullmatch(value.get_secret_value()):
                raise ValueError(f"{name} must be one line of printable characters, without blanks around it")
        return headers


class Settings(BaseSettings):
    """The platform's settings. Each field is the environment variable ``WAYBILL_<NAME>``.

    URLs left empty mean "not set": ``waybill up`` then starts that server itself.
    """

    model_config = SettingsConfigDict(env_prefix="WAYBILL_", extra="ignore", frozen=True)

    database_url: str = Field("", description="postgresql://user:password@host:port/database")
    broker_url: str = Field(
        "", description="amqp://user:password@host:port/vhost, or memory://; a cluster's nodes separated by ;"
    )
    redis_url: str = Field("", description="redis://host:port/0; empty: no cache, limits per process")
    broker_api_url: str = Field("", description="RabbitMQ's management API, for Flower")
    data_dir: Path = Field(Path(".waybill"), description="where servers, keys and run files are kept")
    api_host: str = Field("127.0.0.1", description="address the API binds")
    api_port: int = Field(8000, ge=0, le=65535, description="port the API binds")
    flower_port: int = Field(5555, ge=0, le=65535, description="port Flower binds on loopback")
    worker_concurrency: int = Field(2, ge=1, le=256, description="processes (or threads) of one worker")
    admin_email: str = Field("admin@waybill.local", description="the first admin")
    admin_password: SecretStr | None = Field(None, description="else generated and shown once")
    jwt_keys: SecretStr | None = Field(None, description="a JWK set (JSON); the first key signs")
    sealing_keys: SecretStr | None = Field(
        None, description="id:base64, comma-separated; the first seals secrets at rest"
    )
    rate_limits: str = Field(
        "on", description="on, off, or the contract's but for some: write=500/minute,login=off"
    )
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="comma-separated addresses and networks whose X-Forwarded-For is believed"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated origins whose pages may call the API; none by default"
    )
    max_open_jobs: int = Field(
        1_000_000, ge=0, description="jobs queued or retrying; beyond it new ones get 503; 0: no bound"
    )
    max_open_age: int = Field(
        3_600, ge=0, description="seconds that the oldest may be queued; beyond it the same; 0: no bound"
    )
    search_indexes: bool = Field(True, description="build indexes for ?q= where PostgreSQL has pg_trgm")
    refresh_idle_days: int = Field(14, ge=1, le=365, description="a session unused for so long ends")
    refresh_lifetime_days: int = Field(90, ge=1, le=3650, description="a session ends after so long")
    retention_days: float = Field(
        30,
        ge=0,
        le=36_500,
        description="finished jobs and what hangs on them are kept so long; 0: for good",
    )
    audit_retention_days: float = Field(
        365, ge=0, le=36_500, description="entries of the audit trail are kept so long; 0: for good"
    )
    streams_per_principal: int = Field(
        2_000, ge=1, le=20_000, description="event streams and WebSockets of one user at one API process"
    )
    drain_seconds: int = Field(
        0, ge=0, le=15, description="an API that stops goes on taking requests for so long, no longer ready"
    )
    callback_allow_private: bool = Field(False, description="development: http and private addresses")
    callback_endpoints_per_user: int = Field(20, ge=1, le=10_000, description="that one user may register")
    services: Annotated[dict[str, Service], NoDecode] = Field(
        default_factory=dict, description="JSON object: third party -> url, headers, timeout_seconds, at_once"
    )
    amqp_principals: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, description="JSON object: broker user -> email"
    )
    amqp_reply_queues: str = Field(
        ".*", description="regex of whole names that reply_to may have, {user} being the sender's; ours never"
    )
    broker_passwords: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict, description="JSON object: broker user -> password; for doctor alone"
    )
    resources: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated importable modules, each with a RESOURCE"
    )
    migrations: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="comma-separated folders with migrations of your own resources"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", validation_alias=AliasChoices("WAYBILL_LOG_LEVEL", "log_level")
    )

    @field_validator("database_url")
    @classmethod
    def _psycopg_scheme(cls, url: str) -> str:
        for scheme in ("postgresql+psycopg://", "postgresql://", "postgres://"):
            if url.startswith(scheme):
                return _checked("postgresql+psycopg://" + url.removeprefix(scheme))
        if url:
            raise ValueError("must begin with postgresql:// or postgresql+psycopg://")
        return url

    @field_validator("broker_url")
    @classmethod
    def _amqp_schemes(cls, text: str) -> str:
        if text.startswith(MEMORY) and ";" not in text:
            return text
        urls = [url.strip() for url in text.split(";") if url.strip()]
        if not all(url.startswith(("amqp://", "amqps://", "pyamqp://")) for url in urls):
            raise ValueError("must begin with amqp:// or amqps://, each of several too, or be memory://")
        for url in urls:
            _check_port(url)
        if len({url.partition("://")[2].partition("/")[2].strip("/") for url in urls}) > 1:
            raise ValueError("several are the nodes of one cluster: they must name the same virtual host")
        return ";".join(urls)

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, url: str) -> str:
        if url and not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        _check_port(url)
        return url

    @field_validator("rate_limits")
    @classmethod
    def _known_quotas(cls, text: str) -> str:
        parse_quotas(text)
        return text

    @field_validator("cors_origins")
    @classmethod
    def _whole_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError("must be origins like https://app.example.com, each named; no path, no *")
        return origins

    @field_validator("amqp_reply_queues")
    @classmethod
    def _regular_expression(cls, pattern: str) -> str:
        try:
            for name in ("name", "(?!)"):  # as a sender's stands in it, and where he has none
                re.compile(pattern.replace("{user}", name))
        except re.error as error:
            raise ValueError(f"must be a regular expression: {error}") from error
        return pattern

    @field_validator("amqp_principals", "broker_passwords", "services", mode="before")
    @classmethod
    def _json_object(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("resources", "migrations", "trusted_proxies", "cors_origins", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @property
    def broker_urls(self) -> tuple[str, ...]:
        """The broker's nodes, one URL each."""
        return tuple(url for url in self.broker_url.split(";") if url)

    @property
    def has_broker(self) -> bool:
        """Whether a real broker is named; without one Celery runs on ``memory://`` in one process."""
        return bool(self.broker_url) and not self.broker_url.startswith(MEMORY)


def _checked(url: str) -> str:
    if url.count("@") > 1:
        raise ValueError(_UNREADABLE)
    if has_several_hosts(url):
        hosts_of(url)
        return url
    try:
        port = make_url(url).port
    except (ArgumentError, ValueError):
        port = -1
    if port is not None and not 0 < port <= 65535:
        raise ValueError("must look like postgresql://user:password@host:port/database")
    return url


def _check_port(url: str) -> None:
    """Refuse a URL that cannot be read. Who reads it would name a part of its password in his complaint."""
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise ValueError(_UNREADABLE) from None


_UNREADABLE = "cannot be read: write / ? # @ : in its password as %2F %3F %23 %40 %3A"


def load_settings(*, with_run_file: bool = True, **overrides: Any) -> Settings:
    """Read the settings: arguments, then the environment, then ``.env``, then what a running ``up`` wrote.

    ``$WAYBILL_DATA_DIR/run/waybill.env`` names the servers that ``waybill up`` started, so that
    ``waybill jobs`` in a second shell finds them.

    Args:
        with_run_file: False for ``up`` itself: what a killed predecessor wrote does not bind it.
        **overrides: Fields that outrank everything else.

    Raises:
        ConfigurationError: One line that names the variable and what is wrong with it.
    """
    try:
        probe = Settings(_env_file=".env", **overrides)
        run_file = probe.data_dir / "run" / "waybill.env"
        candidates = (run_file, Path(".env")) if with_run_file else (Path(".env"),)
        files = [path for path in candidates if path.is_file()]
        return Settings(_env_file=files, **overrides)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper().removeprefix("WAYBILL_") if first["loc"] else "?"
        raise ConfigurationError(f"WAYBILL_{name}: {first['msg']}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(".env is not a text file in UTF-8") from error
    except PermissionError as error:
        raise ConfigurationError(f"cannot read {error.filename}: check its owner and mode") from error
