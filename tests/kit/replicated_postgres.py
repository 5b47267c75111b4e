"""A PostgreSQL primary and its synchronous standby, which may be promoted again and again."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from deploy.data_directory import DataDirectory, write_private
from deploy.ports import LOOPBACK
from deploy.postgres_home import PostgresHome
from deploy.postgres_server import PostgresServer
from tests.kit.faulty_link import FaultyLink
from tests.kit.servers import temporary_data_directory
from tests.kit.waiting import wait_until

_SHARED_SECRETS = ("postgres", "postgres-postgres")
_PATIENCE_SECONDS = 60.0


class Replica(PostgresServer):
    """A server that begins as a copy of another, streaming from it; the first of all begins empty.

    Args:
        directory: Prepared, of its own; its secrets are those of all.
        name: What the primary calls it.
    """

    def __init__(self, directory: DataDirectory, name: str) -> None:
        super().__init__(directory)
        self.member = name
        self.source: FaultyLink | None = None

    def promote(self) -> None:
        """Make it the primary where it is not; returns when it takes writes."""
        home = self._known_home()
        if self._is_standby(home):
            result = home.account.run(home.programs / "pg_ctl", "promote", "-w", "-D", home.data)
            assert result.returncode == 0, result.stderr + result.stdout

    @staticmethod
    def _is_standby(home: PostgresHome) -> bool:
        return (home.data / "standby.signal").exists()

    def forget(self) -> None:
        """Remove all that it holds; only while it is down."""
        shutil.rmtree(self._workplace, ignore_errors=True)

    def require_standby(self, names: str) -> None:
        """Let every commit wait for these standbys; empty: for none."""
        with psycopg.connect(self.superuser_url, autocommit=True) as connection:
            setting = sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(names))
            connection.execute(setting)
            connection.execute("SELECT pg_reload_conf()")

    def synchronous_standbys(self) -> list[str]:
        """Who streams from it now and is waited for."""
        query = "SELECT application_name FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')"
        with psycopg.connect(self.superuser_url, autocommit=True) as connection:
            return [str(row[0]) for row in connection.execute(query)]

    def _create_cluster(self, home: PostgresHome) -> None:
        if self.source is None:
            super()._create_cluster(home)
            return
        passwords = home.room / "replication.password"
        passwords.unlink(missing_ok=True)
        secret = self._directory.secret("postgres-postgres")
        write_private(passwords, f"{LOOPBACK}:*:*:postgres:{secret}\n")
        home.account.own(passwords)
        result = home.account.run(
            home.programs / "pg_basebackup",
            f"--dbname=host={LOOPBACK} port={self.source.port} user=postgres passfile={passwords} "
            f"application_name={self.member}",
            f"--pgdata={home.data}",
            "--write-recovery-conf",
            "--wal-method=stream",
            "--checkpoint=fast",
        )
        assert result.returncode == 0, result.stderr
        with (home.data / "postgresql.auto.conf").open("a") as stream:
            stream.write("wal_retrieve_retry_interval = 200\nsynchronous_standby_names = ''\n")


class ReplicatedPostgres:
    """Used like one server, which is the primary of the moment; it has lost nothing after :meth:`fail_over`.

    Args:
        directory: Prepared; holds a directory for each server.
    """

    def __init__(self, directory: DataDirectory) -> None:
        home = directory.path / "replicated"
        home.mkdir()
        home.chmod(0o711)
        made = []
        for name in ("one", "other"):
            own = DataDirectory(home / name)
            own.prepare()
            for secret in _SHARED_SECRETS:
                write_private(own.secrets / secret, directory.secret(secret) + "\n")
            made.append(Replica(own, name))
        self.primary, self.standby = made
        self.line: FaultyLink | None = None
        """From the standby to the primary."""

    @property
    def url(self) -> str:
        """The primary's."""
        return self.primary.url

    @property
    def port(self) -> int:
        """The primary's."""
        return self.primary.port

    @property
    def pid(self) -> int | None:
        """The primary's."""
        return self.primary.pid

    @property
    def urls(self) -> str:
        """Both, as libpq takes them: whichever takes writes."""
        credentials = self.primary.url.partition("@")[0]
        hosts = ",".join(
            f"{LOOPBACK}:{one.port}" for one in sorted((self.primary, self.standby), key=_member)
        )
        return f"{credentials}@{hosts}/waybill?target_session_attrs=read-write"

    def launch(self) -> None:
        """Start the primary; returns before it is ready."""
        self.primary.launch()

    def wait_ready(self) -> None:
        """Wait until the primary answers; make a standby if there is none, and have commits wait for it."""
        self.primary.wait_ready()
        if not self.standby.is_alive():
            self.join_standby()

    def start(self) -> None:
        """Launch, and wait until it is ready."""
        self.launch()
        self.wait_ready()

    def fail_over(self, redirect: Callable[[int], None] = lambda _: None) -> None:
        """Lose the primary for good and promote the standby. There is none then: see :meth:`join_standby`.

        Args:
            redirect: Told the port of the new primary.
        """
        self.primary.kill()
        self._close_line()
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary
        redirect(self.primary.port)

    def join_standby(self) -> None:
        """Make a new standby of the primary, from nothing, and have every commit wait for it."""
        self.standby.kill()
        self.standby.forget()
        self._close_line()
        self.standby.source = self.line = FaultyLink("standby-primary", self.primary.port)
        self.standby.start()
        self.primary.require_standby(self.standby.member)
        wait_until(
            self.primary.synchronous_standbys,
            timeout_seconds=_PATIENCE_SECONDS,
            what="the standby is synchronous",
        )

    def kill(self) -> None:
        """End both."""
        for one in (self.standby, self.primary):
            one.kill()
        self._close_line()

    def _close_line(self) -> None:
        if self.line is not None:
            self.line.close()


def _member(one: Replica) -> str:
    return one.member


@contextmanager
def replicated_postgres() -> Iterator[ReplicatedPostgres]:
    """The wheel's PostgreSQL and a synchronous standby, on data of their own."""
    with temporary_data_directory() as directory:
        servers = ReplicatedPostgres(directory)
        try:
            servers.start()
            yield servers
        finally:
            servers.kill()
