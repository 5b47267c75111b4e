"""A real nginx with the product's own configuration, on other ports. Rendering it changes nothing else."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.ports import free_port
from models.errors import ConfigurationError
from tests.kit.waiting import wait_until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "waybill.conf"
_AROUND = """
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log notice;
events {{ worker_connections 1024; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/waybill.conf;
}}
"""


def find_nginx() -> str:
    """The program.

    Raises:
        ConfigurationError: It is missing.
    """
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    if found is None:
        raise ConfigurationError("nginx is not installed")
    return found


def rendered(folder: Path, port: int, processes: Sequence[int]) -> Path:
    """Write the configuration into ``folder``, listening on ``port`` before these processes; its path."""
    servers = re.findall(r"^    server 127\.0\.0\.1:\d+(.*)$", CONFIGURATION.read_text(), re.MULTILINE)
    listed = iter(processes)
    text = re.sub(
        r"^    server 127\.0\.0\.1:\d+",
        lambda _: f"    server 127.0.0.1:{next(listed)}",
        CONFIGURATION.read_text(),
        flags=re.MULTILINE,
    )
    assert len(servers) == len(processes)
    assert text.count("listen 80;") == 1
    (folder / "waybill.conf").write_text(text.replace("listen 80;", f"listen 127.0.0.1:{port};"))
    around = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # what it writes lies in a folder of ours alone
    around.write_text(_AROUND.format(folder=folder, user=user))
    return around


@contextmanager
def gateway(folder: Path, processes: Sequence[int]) -> Iterator[str]:
    """Nginx before API processes, for the length of a block; yields its URL."""
    port = free_port()
    configuration = rendered(folder, port, processes)
    nginx = subprocess.Popen(
        [find_nginx(), "-p", str(folder), "-c", str(configuration), "-g", "daemon off;"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until((folder / "nginx.pid").exists, timeout_seconds=30, what="nginx runs")
        yield f"http://127.0.0.1:{port}"
    finally:
        nginx.terminate()
        nginx.wait(20)
        print((folder / "error.log").read_text()[-4000:])  # noqa: T201 - pytest shows it when the test fails
