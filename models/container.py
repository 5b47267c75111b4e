"""The composition root: what this process is made of, wired in one place. Make one per process.

Singletons are made when first asked for, so that a command opens only what it uses and a forked
worker makes its own after the fork. Nothing here is global; inner code gets plain constructor
arguments.
"""

import logging
from datetime import timedelta
from functools import cached_property

from models.cache.cache import Cache
from models.cache.no_cache import NoCache
from models.cache.redis_cache import RedisCache
from models.cache.views import Views
from models.capacity import Capacity
from models.database import Database
from models.dead_letters.redriving import Redriver
from models.deliveries.endpoint_secrets import EndpointSecrets
from models.deliveries.endpoints import CallbackEndpoints
from models.errors import ConfigurationError, Transient
from models.identity.keys import derived_key, jwk_set_watch, load_jwk_set
from models.identity.login_guard import LoginGuard
from models.identity.refresh_families import RefreshFamilies
from models.identity.sealing import Sealer, sealing_keys
from models.identity.second_factors import SecondFactors
from models.identity.session_cache import SessionCache
from models.identity.sign_in import SignIn
from models.identity.standing import Standings
from models.identity.tokens import Tokens
from models.identity.users import Users
from models.intake import Intake
from models.ledger import Ledger
from models.process_name import process_name
from models.redis_client import RedisClient
from models.registry import Registry, discover
from models.retention import Retention
from models.retry import RetryPolicy
from models.revisions import Revisions, known_revisions
from models.schema_fitness import why_unfit
from models.settings import Settings

_log = logging.getLogger("waybill.start")


class Container:
    """Singletons of one process.

    Args:
        settings: Read once, at the edge.
        role: What this process does; names its connections, with the version.
        pool_size: Database connections that it may hold.
    """

    def __init__(self, settings: Settings, *, role: str, pool_size: int = 5) -> None:
        self.settings = settings
        self.role = role
        self._pool_size = pool_size

    @cached_property
    def database(self) -> Database:
        """PostgreSQL, the only truth."""
        if not self.settings.database_url:
            raise ConfigurationError(
                "WAYBILL_DATABASE_URL is not set: start the platform with ./deploy/up, or name a PostgreSQL"
            )
        return Database(
            self.settings.database_url,
            application_name=process_name(self.role, self.revisions.heads),
            pool_size=self._pool_size,
        )

    @cached_property
    def revisions(self) -> Revisions:
        """The migrations that this program knows."""
        return known_revisions(self.settings.migrations)

    @cached_property
    def registry(self) -> Registry:
        """Every resource that this process serves."""
        return discover(self.settings.resources, lambda: self.sealer)

    @cached_property
    def redis(self) -> RedisClient | None:
        """What this process keeps in Redis and can do without; None where there is none."""
        url = self.settings.redis_url
        return RedisClient(url, name=self.role) if url else None

    @cached_property
    def cache(self) -> Cache:
        """What is read often."""
        return RedisCache(self.redis) if self.redis is not None else NoCache()

    @cached_property
    def views(self) -> Views:
        """Reads of instances and lists, through the cache."""
        return Views(self.database, self.registry, self.cache)

    @cached_property
    def ledger(self) -> Ledger:
        """The only writer of job states."""
        return Ledger(
            [
                (resource.type.name, operation, effect.name)
                for resource in self.registry
                for effect in resource.type.effects
                for operation in sorted(effect.operations)
            ]
        )

    @cached_property
    def endpoints(self) -> CallbackEndpoints:
        """Callback endpoints."""
        return CallbackEndpoints(self.endpoint_secrets, self.settings.callback_endpoints_per_user)

    @cached_property
    def endpoint_secrets(self) -> EndpointSecrets:
        """What signs callbacks."""
        return EndpointSecrets(self.sealer)

    @cached_property
    def users(self) -> Users:
        """Who may log in."""
        return Users()

    @cached_property
    def intake(self) -> Intake:
        """Turns submissions into jobs."""
        return Intake(self.database, self.ledger, self.registry, self.endpoints)

    @cached_property
    def redriver(self) -> Redriver:
        """Redrives and discards dead letters."""
        return Redriver(self.database, self.ledger, self.registry, self.users)

    @cached_property
    def retention(self) -> Retention:
        """Deletes what is past its time."""
        return Retention(
            self.database,
            finished=timedelta(days=self.settings.retention_days),
            audit=timedelta(days=self.settings.audit_retention_days),
        )

    @cached_property
    def capacity(self) -> Capacity:
        """Whether the ledger has room for more work."""
        settings = self.settings
        age = timedelta(seconds=settings.max_open_age)
        return Capacity(self.database, settings.max_open_jobs, age)

    @cached_property
    def tokens(self) -> Tokens:
        """Access tokens."""
        watch = jwk_set_watch(self.settings)  # before it is loaded, so that no change falls between
        return Tokens(load_jwk_set(self.settings), changed_set=watch)

    @cached_property
    def standings(self) -> Standings:
        """What the users that this process meets are now."""
        return Standings(self.database, on_load=self.tokens.reload)

    @cached_property
    def second_factors(self) -> SecondFactors:
        """Codes beside passwords."""
        return SecondFactors(self.sealer)

    @cached_property
    def login_guard(self) -> LoginGuard:
        """Makes those wait who guess."""
        return LoginGuard(self.key("login-attempts"))

    @cached_property
    def sign_in(self) -> SignIn:
        """Begins, renews and ends sessions."""
        families = RefreshFamilies(
            idle=timedelta(days=self.settings.refresh_idle_days),
            lifetime=timedelta(days=self.settings.refresh_lifetime_days),
        )
        return SignIn(
            self.database,
            users=self.users,
            families=families,
            second_factors=self.second_factors,
            guard=self.login_guard,
            tokens=self.tokens,
            cache=SessionCache(self.redis),
        )

    @cached_property
    def sealer(self) -> Sealer:
        """Secrets at rest."""
        given = self.settings.sealing_keys
        keys = sealing_keys(given.get_secret_value()) if given is not None else {}
        # The data directory's own key comes last: what it sealed before keys were set still opens.
        return Sealer({**keys, "own": self.key("sealing")})

    @cached_property
    def retry_policy(self) -> RetryPolicy:
        """What to do about failed attempts."""
        return RetryPolicy()

    def check_services(self) -> None:
        """See that every third party that an effect names is known.

        Raises:
            ConfigurationError: One is not; the message names it.
        """
        for (resource, name), effect in self.registry.effects().items():
            if effect.service not in self.settings.services:
                raise ConfigurationError(
                    f"WAYBILL_SERVICES: {effect.service} is missing, which effect {name} of {resource} calls"
                )

    def check_schema(self) -> None:
        """See that this program can work with the database's schema. Passes where the database is away.

        Raises:
            ConfigurationError: It cannot; the message says which command mends it.
        """
        _ = self.registry  # its tables belong to the schema
        try:
            with self.database.snapshot() as connection:
                reason = why_unfit(connection, self.revisions)
        except Transient as error:
            _log.warning("the schema could not be looked at", extra={"reason": str(error)})
            return
        if reason is not None:
            raise ConfigurationError(reason)

    def key(self, purpose: str) -> bytes:
        """32 secret bytes for one purpose, the same in every process of this installation."""
        return derived_key(self.settings, purpose)

    def close(self) -> None:
        """Let go of what was opened."""
        if "cache" in self.__dict__:
            self.cache.close()
        if "redis" in self.__dict__ and self.redis is not None:
            self.redis.close()
        if "database" in self.__dict__:
            self.database.close()
