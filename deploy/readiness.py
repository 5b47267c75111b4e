"""Asking the running API whether the platform is ready. Only HTTP."""

from dataclasses import dataclass

import urllib3

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared, not bound


def http_url(host: str, port: int) -> str:
    """Where a client on this machine reaches a server that listens there."""
    reachable = _ANY_ADDRESS.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


@dataclass(frozen=True, slots=True)
class Readiness:
    """One answer of ``/health/ready``; ``reason`` says why not, in one line."""

    is_ready: bool
    reason: str


def ask_ready(api_url: str, timeout_seconds: float = 3) -> Readiness:
    """Ask once; never raises."""
    try:
        answer = urllib3.request("GET", f"{api_url}/health/ready", timeout=timeout_seconds, retries=False)
    except urllib3.exceptions.HTTPError as error:
        return Readiness(False, f"{api_url} does not answer ({type(error).__name__})")
    text = " ".join(answer.data.decode(errors="replace").split())[:300]
    return Readiness(answer.status == 200, f"/health/ready says {answer.status}: {text}")
