"""``waybill up --full --demo``: everything started, a thousand real jobs, everything stopped."""

import pytest

from deploy.data_directory import DataDirectory
from deploy.rabbitmq_server import find_rabbitmq
from deploy.redis_server import find_redis
from deploy.server import processes_in
from tests.kit.launched import launched_whole
from tests.kit.servers import require


@pytest.mark.timeout(300)
def test_demo_of_a_thousand_jobs_succeeds_and_leaves_nothing(directory: DataDirectory) -> None:
    require(find_rabbitmq)
    require(find_redis)
    with launched_whole(directory, "--full", "--demo", "1000") as up:
        status = up.wait_exit(200)

    assert status == 0, up.said()
    assert "succeeded: 1000 says the API, 1000 says the ledger, of 1000" in up.said()
    assert "submit→done p50" in up.said()
    assert "Traceback" not in up.said()
    programs = frozenset({"postgres", "beam.smp", "epmd", "redis-server"})
    for room in ("postgres", "rabbitmq", "redis"):
        assert processes_in(directory.path / room, programs) == []
