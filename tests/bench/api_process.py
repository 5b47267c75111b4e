"""An API process of a benchmark, on a free port, with limits off. What is asked of it is the benchmark's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import urllib3

from deploy.ports import free_port
from tests.bench.processes import python, running
from tests.kit.waiting import wait_until


@contextmanager
def running_api(
    database_url: str, directory: Path, *, redis_url: str = ""
) -> Iterator[tuple[int, "Popen[bytes]"]]:
    """An API that answers, without a broker; yields its port and its process.

    Args:
        database_url: Migrated.
        directory: Its data directory; its log goes there too.
        redis_url: Empty: without one.
    """
    port = free_port()
    env = {
        "WAYBILL_DATABASE_URL": database_url,
        "WAYBILL_BROKER_URL": "memory://",
        "WAYBILL_REDIS_URL": redis_url,
        "WAYBILL_DATA_DIR": str(directory),
        "WAYBILL_API_PORT": str(port),
        "WAYBILL_RATE_LIMITS": "off",
    }
    with running(python("deploy.cli", "api"), env, directory / f"api-{port}.log") as process:
        http = urllib3.PoolManager(retries=False)

        def answers() -> bool:
            try:
                return http.request("GET", f"http://127.0.0.1:{port}/health/live").status == 200
            except urllib3.exceptions.HTTPError:
                return False

        wait_until(answers, timeout_seconds=30, what="the API answers")
        yield port, process
