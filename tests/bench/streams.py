"""``python -m tests.bench.streams``: thousands who wait at one API process; threads, memory, queries, delay.

Each waits for a job of its own. The jobs are applied in this process, in batches of 50, and every
waiting client must be told of its outcome.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Any
from uuid import UUID

import click
import psutil
import urllib3
from websockets.asyncio.client import connect

from models.settings import Settings
from tests.bench.api_process import running_api
from tests.bench.processes import BenchFailure
from tests.kit.platform import Platform
from tests.kit.servers import fresh_database, postgres_server, temporary_data_directory

BATCH = 50


class Crowd:
    """Those who wait, and when each was told.

    Args:
        port: Of the API.
        token: Whose they all are.
    """

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self.ready = 0
        self.delays: list[float] = []

    def _told(self, job: dict[str, Any]) -> None:
        finished = datetime.fromisoformat(job["finishedAt"])
        self.delays.append((datetime.now(UTC) - finished).total_seconds())

    async def _ask(self, path: str, header: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._token}\r\n{header}\r\n"
        writer.write(head.encode())
        return reader, writer

    async def long_poll(self, job: UUID) -> None:
        """Long-poll until the job is done."""
        while True:
            reader, writer = await self._ask(f"/api/v1/jobs/{job}", "Prefer: wait=30\r\n")
            self.ready += 1
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise BenchFailure(head.split(b"\r\n")[0].decode())
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            writer.close()
            if answer["done"]:
                self._told(answer)
                return
            self.ready -= 1

    async def events(self, job: UUID) -> None:
        """Listen to the job's events until they end."""
        reader, writer = await self._ask(f"/api/v1/jobs/{job}/events")
        while line := await reader.readline():
            if line.startswith(b"data: "):
                said = json.loads(line[6:])
                if said["done"]:
                    self._told(said)
                    writer.close()
                    return
                self.ready += 1
        raise BenchFailure("an event stream ended before its job")

    async def socket(self, job: UUID) -> None:
        """Follow the job over a WebSocket."""
        uri = f"ws://127.0.0.1:{self._port}/api/v1/stream"
        async with connect(uri, compression=None, open_timeout=60) as socket:
            await socket.send(json.dumps({"token": self._token, "subscribe": [str(job)]}))
            while not (frame := json.loads(await socket.recv()))["job"]["done"]:
                self.ready += 1
            self._told(frame["job"])


def _reads(port: int) -> int:
    for line in urllib3.request("GET", f"http://127.0.0.1:{port}/metrics").data.decode().splitlines():
        if line.startswith("waybill_change_reads_total "):
            return int(float(line.split()[1]))
    return 0


def _queries(platform: Platform) -> int:
    """Transactions of everybody on the database, the bench's own and the server's among them."""
    query = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    return int(platform.rows(query)[0][0])


async def _measure(platform: Platform, port: int, token: str, api: psutil.Process, counts: list[int]) -> None:
    crowd = Crowd(port, token)
    kinds: list[Callable[[UUID], Awaitable[None]]] = [crowd.long_poll, crowd.events, crowd.socket]
    who = [kind for kind, count in zip(kinds, counts, strict=True) for _ in range(count)]
    jobs: list[UUID] = []
    while len(jobs) < len(who):
        room = min(200, len(who) - len(jobs))
        jobs += platform.accept(*(platform.create() for _ in range(room)))
    before = (api.num_threads(), api.memory_info().rss)
    waiting = []
    began = time.monotonic()
    for at, (kind, job) in enumerate(zip(who, jobs, strict=True)):
        waiting.append(asyncio.ensure_future(kind(job)))
        if at % 100 == 99:
            await asyncio.sleep(0.05)
    while crowd.ready < len(who):
        if broken := [one for one in waiting if one.done() and one.exception()]:
            await broken[0]
        await asyncio.sleep(0.05)
    click.echo(f"{len(who)} wait after {time.monotonic() - began:.1f} s")
    await asyncio.sleep(2)
    threads, memory = api.num_threads(), api.memory_info().rss
    click.echo(f"threads: {before[0]} before, {threads} while all wait")
    each = (memory - before[1]) // len(who) >> 10
    click.echo(f"memory: {before[1] >> 20} MiB before, {memory >> 20} MiB while all wait: {each} KiB each")
    await _rest(platform, port, api)
    reads, began = _reads(port), time.monotonic()
    applier = platform.applier()
    for at in range(0, len(jobs), BATCH):
        await asyncio.to_thread(applier.apply, jobs[at : at + BATCH])
    applied = time.monotonic() - began
    await asyncio.wait_for(asyncio.gather(*waiting), 60)
    told, reads, cuts = time.monotonic() - began, _reads(port) - reads, quantiles(crowd.delays, n=100)
    click.echo(f"{len(jobs)} jobs applied in {applied:.1f} s, all told after {told:.1f} s: {reads} readings")
    p50, p95, p99 = (round(cuts[at] * 1000) for at in (49, 94, 98))
    click.echo(f"from finishedAt to the client: p50 {p50} ms, p95 {p95} ms, p99 {p99} ms")
    if len(crowd.delays) != len(who) or threads > before[0] + 8:
        raise BenchFailure("somebody was not told, or waits on a thread")


async def _rest(platform: Platform, port: int, api: psutil.Process) -> None:
    """What they cost while nothing happens."""
    reads, queries, cpu = _reads(port), _queries(platform), sum(api.cpu_times()[:2])
    await asyncio.sleep(10)
    reads, queries = _reads(port) - reads, _queries(platform) - queries
    cpu = sum(api.cpu_times()[:2]) - cpu
    click.echo(f"10 s at rest: {reads} readings; {queries} transactions in the database; {cpu:.2f} s of CPU")


@click.command()
@click.option("--long-polls", default=1_000, show_default=True, type=click.IntRange(0))
@click.option("--events", default=1_000, show_default=True, type=click.IntRange(0))
@click.option("--sockets", default=500, show_default=True, type=click.IntRange(0))
def streams(long_polls: int, events: int, sockets: int) -> None:
    """Have so many clients wait at one API process, and measure what they cost it."""
    with postgres_server() as server, fresh_database(server) as url, temporary_data_directory() as directory:
        platform = Platform(Settings(_env_file=None, database_url=url, data_dir=Path(directory.path)))
        token = platform.container.tokens.issue(platform.ada)
        with running_api(url, Path(directory.path)) as (port, process):
            asyncio.run(
                _measure(platform, port, token, psutil.Process(process.pid), [long_polls, events, sockets])
            )
        platform.container.close()


if __name__ == "__main__":
    streams()
