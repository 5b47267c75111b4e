"""A disk that is full under the platform's own files: nobody ends of it, and who ends comes back."""

import os
import signal
from contextlib import suppress

import pytest
import urllib3

from deploy.data_directory import DataDirectory
from deploy.rabbitmq_server import find_rabbitmq
from deploy.redis_server import find_redis
from tests.kit.client import Client
from tests.kit.disks import Disk, can_mount
from tests.kit.launched import launched_whole
from tests.kit.servers import require
from tests.kit.waiting import wait_until

ADMIN, PASSWORD = "admin@waybill.local", "correct horse battery staple"


@pytest.mark.timeout(300)
@pytest.mark.skipif(not can_mount(), reason="a disk of its own needs root, and a mount")
def test_full_disk_under_our_own_files_stops_nobody(directory: DataDirectory) -> None:
    require(find_rabbitmq)
    require(find_redis)
    disk = Disk(directory.run)
    disk.mount()
    try:
        with launched_whole(directory, "--full", WAYBILL_ADMIN_PASSWORD=PASSWORD) as up:
            up.wait_ready()
            client = Client(f"http://127.0.0.1:{up.api_port}")
            client.log_in(ADMIN, PASSWORD)

            def is_served() -> bool:
                with suppress(urllib3.exceptions.HTTPError):
                    return client.outcome("POST", "entities", {"name": "kept"}).status == 201
                return False

            assert is_served()
            disk.fill()
            known = up.processes()
            for kind in ("api", "worker", "consumer"):
                for pid in known[kind]:
                    os.kill(pid, signal.SIGKILL)
            wait_until(is_served, timeout_seconds=60, every_seconds=0.2, what="a job is applied")
            assert up.process.poll() is None
            disk.free()
            wait_until(lambda: up.processes().get("api", known["api"]) != known["api"], what="new pids told")
            assert up.stop() == 0
    finally:
        disk.unmount()
