"""``python -m tests.bench.cache``: reads over HTTP with the cache and without, while others write and die.

Two API processes serve the same database, one of them with Redis. A writer process patches entities and
says so after each commit; after a few seconds it is killed -9, and another one goes on. A read that shows
less than what was said before it was sent is stale, and counted.
"""

import asyncio
import json
import random
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import click
import urllib3

from models.identity.principals import Principal, Role
from models.settings import Settings
from tests.bench.api_process import running_api
from tests.bench.processes import ROOT, BenchFailure, environment, python
from tests.kit.platform import Platform
from tests.kit.servers import fresh_database, postgres_server, redis_server, temporary_data_directory
from tests.kit.waiting import wait_until

LIST_EVERY = 5
LIFE_SECONDS = (0.5, 4.0)
"""Of a writer, from its first commit."""


@dataclass
class Tally:
    """What the readers of one API process saw."""

    seconds: float = 0.0
    stale: int = 0
    took: list[float] = field(default_factory=list)
    hits: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where to read what, as whom."""

    port: int
    token: str
    ids: list[str]


class Writers:
    """Keeps a writer at work, kills it now and then, and knows what it has said.

    Args:
        env: Of the writer.
        rate: Patches per second.
    """

    def __init__(self, env: dict[str, str], rate: float) -> None:
        self.known: dict[str, int] = {}
        self.patches = self.kills = 0
        self._argv = python("tests.bench.cache", "--write", str(rate))
        self._env = environment(env)
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._is_stopping = threading.Event()

    def start(self) -> None:
        """Begin to write, and to be killed."""
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let nobody write any more."""
        self._is_stopping.set()
        if self._process is not None:
            self._process.kill()
        if self._thread is not None:
            self._thread.join(10)

    def _live(self) -> None:
        while not self._is_stopping.is_set():
            self._process = process = subprocess.Popen(
                self._argv, env=self._env, cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            has_begun = False
            killer = threading.Timer(random.uniform(*LIFE_SECONDS), process.kill)
            assert process.stdout is not None
            for line in process.stdout:
                if not has_begun:
                    has_begun = True
                    killer.start()
                key, version = line.split()
                self.known[key] = max(int(version), self.known.get(key, 0))
                self.patches += 1
            process.wait()
            killer.cancel()
            self.kills += 1


class WritersPlatform(Platform):
    """On a database that has its users already."""

    def add_user(self, name: str, role: Role) -> Principal:
        """Who is there by that name."""
        with self.database.snapshot() as connection:
            found = self.container.users.by_email(connection, f"{name}@example.org")
        assert found is not None
        return found.principal


def write(rate: float) -> None:
    """Patch entities at random, and say which version each has after its commit; until killed."""
    platform = WritersPlatform(Settings(_env_file=None))
    platform.container.cache.forget_all()
    ids = [row[0] for row in platform.rows("SELECT id FROM entities ORDER BY id")]
    while True:
        began = time.monotonic()
        chosen = random.sample(ids, 5)
        text = f"at {began}"
        patches = [platform.patch(one, description=text) for one in chosen]
        for job in platform.made(*patches):
            print(job.resource_id, job.version, flush=True)
        time.sleep(max(0.0, len(chosen) / rate - (time.monotonic() - began)))


async def _read(place: Place, known: dict[str, int], until: float, tally: Tally) -> None:
    """One keep-alive connection that reads: popular entities more often, and a list now and then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", place.port, limit=2**20)
    ids, count = place.ids, 0
    while time.monotonic() < until:
        count += 1
        chosen = ids[min(int(random.paretovariate(1.0)) - 1, len(ids) - 1)]
        path = chosen if count % LIST_EVERY else "?limit=20&sort=-createdAt"
        expected = dict(known) if path != chosen else {chosen: known.get(chosen, 0)}
        began = time.perf_counter()
        head = f"GET /api/v1/entities{'/' * (path == chosen)}{path} HTTP/1.1\r\nHost: x\r\n"
        writer.write(f"{head}Authorization: Bearer {place.token}\r\n\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer.split(b"\r\n")[0]:
            raise BenchFailure(answer.split(b"\r\n")[0].decode())
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        tally.took.append(time.perf_counter() - began)
        shown = body["items"] if path != chosen else [body]
        tally.stale += any(one["version"] < expected.get(one["id"], 0) for one in shown)
    writer.close()


def _measured(place: Place, known: dict[str, int], seconds: float, at_once: int) -> Tally:
    tally, before = Tally(), _counts(place.port)

    async def everybody() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(_read(place, known, until, tally) for _ in range(at_once)))

    began = time.monotonic()
    asyncio.run(everybody())
    tally.seconds = time.monotonic() - began
    after = _counts(place.port)
    for kind in ("instance", "list"):
        hit, miss, bypass = (
            after.get((kind, one), 0) - before.get((kind, one), 0) for one in ("hit", "miss", "bypass")
        )
        tally.hits[kind] = (hit, hit + miss + bypass)
    return tally


def _counts(port: int) -> dict[tuple[str, str], int]:
    found = {}
    for line in urllib3.request("GET", f"http://127.0.0.1:{port}/metrics").data.decode().splitlines():
        if line.startswith("waybill_cache_reads_total{"):
            labels = dict(pair.split("=") for pair in line.split("{")[1].split("}")[0].split(","))
            found[(labels["kind"].strip('"'), labels["outcome"].strip('"'))] = int(float(line.split()[-1]))
    return found


def _print(name: str, tally: Tally) -> None:
    cuts = quantiles(tally.took, n=100)
    rate = len(tally.took) / tally.seconds
    hits = ", ".join(f"{kind} {100 * hit / max(all_, 1):.1f} %" for kind, (hit, all_) in tally.hits.items())
    click.echo(
        f"{name:14} {rate:8.0f} reads/s  p50 {cuts[49] * 1000:6.2f} ms  p99 {cuts[98] * 1000:6.2f} ms  "
        f"stale {tally.stale} of {len(tally.took)}  hits: {hits}"
    )


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds, in turn.")
@click.option("--seconds", default=10.0, show_default=True, help="Length of a round of each.")
@click.option("--entities", default=1_000, show_default=True, type=click.IntRange(20))
@click.option("--rate", default=50.0, show_default=True, help="Patches per second meanwhile.")
@click.option("--connections", default=32, show_default=True, help="Keep-alive connections that read.")
@click.option("--write", "writes", type=float, hidden=True)
def cache(
    rounds: int, seconds: float, entities: int, rate: float, connections: int, writes: float | None
) -> None:
    """Read with the cache and without, in turn, while a writer patches and is killed again and again."""
    if writes is not None:
        write(writes)
        return
    with (
        postgres_server() as server,
        fresh_database(server) as url,
        redis_server() as redis,
        temporary_data_directory() as directory,
    ):
        path = Path(directory.path)
        platform = Platform(Settings(_env_file=None, database_url=url, data_dir=path, redis_url=redis.url))
        token = platform.container.tokens.issue(platform.admin)
        jobs = []
        while len(jobs) < entities:
            room = min(200, entities - len(jobs))
            jobs += platform.made(*(platform.create("x" * 200) for _ in range(room)))
        ids = [str(job.resource_id) for job in jobs]
        env = {"WAYBILL_DATABASE_URL": url, "WAYBILL_REDIS_URL": redis.url, "WAYBILL_DATA_DIR": str(path)}
        writers = Writers(env, rate)
        with running_api(url, path) as (plain, _), running_api(url, path, redis_url=redis.url) as (cached, _):
            writers.start()
            wait_until(lambda: bool(writers.known), timeout_seconds=30, what="somebody writes")
            stale = 0
            for number in range(1, rounds + 1):
                click.echo(f"round {number}")
                for name, port in (("without cache", plain), ("with cache", cached)):
                    tally = _measured(Place(port, token, ids), writers.known, seconds, connections)
                    _print(name, tally)
                    stale += tally.stale
            writers.stop()
        click.echo(f"{writers.patches} patches meanwhile, {writers.kills} writers killed -9")
        platform.container.close()
    if stale:
        raise SystemExit(f"{stale} stale reads")


if __name__ == "__main__":
    cache()
