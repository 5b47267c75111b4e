"""The embedded PostgreSQL: initialised, started, adopted, ended. Where it lives: ``postgres_home.py``."""

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from deploy.data_directory import DataDirectory
from deploy.ports import LOOPBACK, RememberedPorts
from deploy.postgres_home import PostgresHome, find_postgres_home
from deploy.server import LocalServer
from models.errors import ConfigurationError

_NAME = "postgres"
_OWNER = "waybill"
_SUPERUSER = "postgres"
_FREE_TO_CREATE_MIB, _FREE_TO_START_MIB = 256, 64

_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # TCP only: no 107-byte limit on the data directory's path
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "jit": "off",  # short statements only: compiling them costs more than running them
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_parameter_max_length_on_error": "0",
    "log_min_error_statement": "panic",  # statements carry users' data, which has no place in a log
}


class PostgresServer(LocalServer):
    """A real PostgreSQL on loopback with one database and one ordinary role, both named ``waybill``.

    Passwords (scram-sha-256) are generated and kept in the data directory; they are handed over on
    standard input and in 0600 files, never on a command line. A first start that was interrupted leaves
    nothing half-made: the cluster is built beside and renamed.

    Args:
        directory: Prepared; the data is kept in it or where it remembers (``postgres_home``).
    """

    programs = frozenset({"postgres"})
    main_program = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown: roll back what is open, write a checkpoint, end
    locale: tuple[str, ...] = (
        "--locale=C",
        "--locale-provider=builtin",  # upper and lower case of every script, on any machine
        "--builtin-locale=C.UTF-8",
    )

    def __init__(self, directory: DataDirectory) -> None:
        super().__init__(_NAME, directory.path / "postgres" / "data", directory.log_file(_NAME))
        self._directory = directory
        self._ports = RememberedPorts(directory.run / "ports.json")
        self._home: PostgresHome | None = None
        self._port: int | None = None

    @property
    def port(self) -> int:
        """Its loopback port, remembered over restarts."""
        if self._port is None:
            self._port = self._ports.recall(_NAME) or self._ports.choose(_NAME)
        return self._port

    @property
    def url(self) -> str:
        """``postgresql://`` with the password of the role that owns the database."""
        return self.database_url(_OWNER)

    @property
    def superuser_url(self) -> str:
        """The same for the superuser: for benchmarks, which make databases and ask for checkpoints."""
        return self._url(_SUPERUSER, "postgres")

    @property
    def data(self) -> Path:
        """Where the cluster is kept (known after the first launch)."""
        return self._workplace

    def database_url(self, database: str) -> str:
        """The same server and role, another database."""
        return self._url(_OWNER, database)

    def create_database(self, name: str) -> str:
        """Make a fresh database that the role owns; for tests and benchmarks.

        Returns:
            Its URL.
        """
        with psycopg.connect(self._url(_SUPERUSER, "postgres"), autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} OWNER {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(_OWNER)))
        return self.database_url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, its sessions with it; no error when it is gone already."""
        with psycopg.connect(self._url(_SUPERUSER, "postgres"), autocommit=True) as connection:
            statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            connection.execute(statement.format(sql.Identifier(name)))

    def is_ready(self) -> bool:
        """Whether the database opens with our password."""
        try:
            with psycopg.connect(self.url, connect_timeout=3) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True

    def launch(self) -> None:
        """Adopt a surviving postmaster, or start one on the data that is there, or on new data.

        Raises:
            ConfigurationError: One line: no binaries, no room, no access, another major version.
        """
        if self._home is None:
            self._home = find_postgres_home(self._directory)
            self._workplace = self._home.data
            self._port = self._port_of_survivor() or self._ports.choose(_NAME)
            self._ports.remember(_NAME, self._port)
        super().launch()

    def kill(self) -> None:
        """End it and the backends that outlive a killed postmaster: they hold the shared memory."""
        if self._process is not None:
            with suppress(psutil.Error):
                self._process.send_signal(signal.SIGQUIT)
        super().kill()

    def _port_of_survivor(self) -> int | None:
        """The port in ``postmaster.pid`` if one of our postmasters runs."""
        if self._survivor() is None:
            return None
        try:
            return int((self._workplace / "postmaster.pid").read_text().splitlines()[3])
        except (OSError, ValueError, IndexError):
            return None

    def _clear_away(self) -> None:
        # Nothing works in this directory any more, so the lock file is stale; PostgreSQL itself would
        # refuse to start if an unrelated process of the same user had got that pid by now.
        with suppress(FileNotFoundError):
            (self._workplace / "postmaster.pid").unlink()

    def _spawn(self) -> psutil.Process:
        home = self._known_home()
        if not (home.data / "PG_VERSION").exists():
            self._directory.require_free(_FREE_TO_CREATE_MIB, home.room)
            self._create_cluster(home)
        elif not self._directory.has_secret(_NAME):
            self._single_user(
                home, home.data, f"ALTER ROLE {_OWNER} PASSWORD '{self._directory.secret(_NAME)}';\n"
            )
        self._directory.require_free(_FREE_TO_START_MIB, home.room)
        command = [str(home.programs / "postgres"), "-D", str(home.data), "-p", str(self.port)]
        for name, value in _SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        log = self._directory.open_log(_NAME)
        try:
            return psutil.Popen(
                command,
                stdin=-3,  # DEVNULL
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,
                user=home.account.uid,
                group=home.account.gid,
                extra_groups=home.account.extra_groups,
                umask=0o077,
            )
        except OSError as error:
            raise ConfigurationError(f"cannot run {command[0]}: {error.strerror}") from error
        finally:
            os.close(log)

    def _create_cluster(self, home: PostgresHome) -> None:
        """Build the cluster beside its final place, role and database included, then rename it."""
        partial = home.room / "data.new"
        shutil.rmtree(partial, ignore_errors=True)
        password_file = home.room / "superuser.password"
        with suppress(FileNotFoundError):
            password_file.unlink()
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(self._directory.secret(f"{_NAME}-{_SUPERUSER}") + "\n")
        home.account.own(password_file)
        try:
            result = home.account.run(
                home.programs / "initdb",
                f"--pgdata={partial}",
                f"--username={_SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                *self.locale,
                cwd=home.room if home.account.uid is None else None,
            )
        finally:
            password_file.unlink()
        if result.returncode != 0:
            raise ConfigurationError(f"cannot create a database in {home.room}: {_last_line(result.stderr)}")
        self._single_user(
            home,
            partial,
            f"CREATE ROLE {_OWNER} LOGIN PASSWORD '{self._directory.secret(_NAME)}';\n",
            f"CREATE DATABASE {_OWNER} OWNER {_OWNER};\n",
        )
        partial.rename(home.data)

    def _single_user(self, home: PostgresHome, data: Path, *statements: str) -> None:
        """Run statements without a network, in PostgreSQL's single-user mode (one per line)."""
        postgres = home.programs / "postgres"
        result = home.account.run(postgres, "--single", "-D", data, "postgres", stdin="".join(statements))
        if result.returncode != 0 or "ERROR" in result.stderr or "FATAL" in result.stderr:
            raise ConfigurationError(f"cannot prepare the database in {data}: {_last_line(result.stderr)}")

    def _url(self, role: str, database: str) -> str:
        secret = self._directory.secret(_NAME if role == _OWNER else f"{_NAME}-{role}")
        return f"postgresql://{role}:{secret}@{LOOPBACK}:{self.port}/{database}"

    def _known_home(self) -> PostgresHome:
        if self._home is None:
            raise RuntimeError("launch() finds the home first")
        return self._home


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line or "FATAL" in line]
    return (telling or lines or ["it said nothing"])[-1][:300]
