"""Query parameters and paths: out of range, repeated, unknown, tampered with, badly encoded."""

import base64
from collections.abc import Iterator

from tests.attack.attack import Attack, http, statuses
from tests.attack.reply import Reply
from tests.attack.target import ENTITIES, Target

_LIST: dict[str, str] = {
    "limit zero": "limit=0",
    "limit negative": "limit=-1",
    "limit 101": "limit=101",
    "limit huge": "limit=99999999999999999999999",
    "limit a word": "limit=ten",
    "limit a fraction": "limit=1.5",
    "limit in exponent": "limit=1e1",
    "limit with a blank": "limit=%201",
    "limit in Arabic digits": "limit=%D9%A1",
    "limit empty": "limit=",
    "limit twice": "limit=1&limit=2",
    "sort unknown": "sort=ownerId",
    "sort with SQL": "sort=name;DROP%20TABLE%20jobs",
    "sort twice": "sort=name&sort=-name",
    "status unknown": "status=OPEN",
    "q empty": "q=",
    "q with NUL": "q=%00",
    "q of 256": "q=" + "x" * 256,
    "unknown parameter": "page=2",
    "a filter that is none": "ownerId=018f3c1e-0000-7000-8000-000000000000",
    "a parameter with brackets": "status[]=DRAFT",
    "a broken escape": "q=%zz",
    "a half escape": "q=%",
    "escapes that are no UTF-8": "q=%ff%fe",
    "an overlong escape": "q=%c0%af",
    "an escaped surrogate": "q=%ed%a0%80",
    "a name without a value": "limit",
    "cursor empty": "cursor=",
    "cursor of words": "cursor=abc",
    "cursor of base64": "cursor=" + base64.urlsafe_b64encode(b'["1","2"]').decode().rstrip("="),
    "cursor long": "cursor=" + "A" * 20_000,
    "cursor with NUL": "cursor=%00",
}
_JOBS: dict[str, str] = {
    "state unknown": "state=done",
    "resource id not a UUID": "resourceId=x",
    "limit 101": "limit=101",
    "unknown parameter": "sort=name",
    "cursor of words": "cursor=abc",
    "time not a time": "createdAfter=yesterday",
    "state twice": "state=queued&state=dead",
}
_ONE: dict[str, str] = {
    "minVersion zero": "minVersion=0",
    "minVersion negative": "minVersion=-1",
    "minVersion huge": "minVersion=99999999999999999999",
    "minVersion a word": "minVersion=x",
    "unknown parameter": "fields=id",
    "minVersion twice": "minVersion=1&minVersion=2",
}
_IDS = (
    "x", "1", "null", "%00", "..%2f..%2fetc%2fpasswd", "%2e%2e", "'%20OR%201=1--", "{{7*7}}", "-1",
    "018f3c1e00007000800000000000000", "018f3c1e-0000-7000-8000-00000000000g", "x" * 2000, "%c0%ae%c0%ae",
)  # fmt: skip
_PATHS = (
    "/", "/api", "/api/v1", "/api/v1/", "/api/v1/nothing", "/api/v1/entities/", "//api/v1/entities",
    "/api/v1/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/api/v1/entities%2f", "/API/V1/ENTITIES",
    "/.env", "/.git/config", "/admin", "/actuator/env", "/debug/pprof", "/api/v1/entities;x=1", "/%",
    "/server-status", "/api/v1/jobs/{job}/../../users",
)  # fmt: skip


def attacks() -> Iterator[Attack]:
    """Every query at the lists and the single reads; every id and path."""
    for name, query in _LIST.items():
        yield http("queries", f"entities: {name}", "GET", f"{ENTITIES}?{query}", 400)
        yield http("queries", f"entities, HEAD: {name}", "HEAD", f"{ENTITIES}?{query}", 400)
    for name, query in _JOBS.items():
        yield http("queries", f"jobs: {name}", "GET", f"/api/v1/jobs?{query}", 400)
    for name, query in _ONE.items():
        yield http("queries", f"entity: {name}", "GET", f"{ENTITIES}/{{entity}}?{query}", 400)
    yield http("queries", "job: unknown parameter", "GET", "/api/v1/jobs/{job}?x=1", 400)
    yield http("queries", "a write with a query", "POST", f"{ENTITIES}?x=1", 400, json_body={"name": "a"})
    yield Attack("queries", "cursor of another list", _foreign_cursor, statuses(400))
    yield Attack("queries", "cursor of another user", _stolen_cursor, statuses(400))
    yield Attack("queries", "cursor with one bit turned", _turned_cursor, statuses(400))
    for identifier in _IDS:
        for path in (
            f"{ENTITIES}/{identifier}",
            f"/api/v1/jobs/{identifier}",
            f"/api/v1/jobs/{identifier}/result",
        ):
            yield http("ids", f"{path[:60]}", "GET", path, (400, 404))
        yield http("ids", f"DELETE {identifier[:40]}", "DELETE", f"{ENTITIES}/{identifier}", (400, 404))
    for path in _PATHS:
        yield http("paths", path, "GET", path, (400, 404))
    for method in ("TRACE", "PROPFIND", "TRACK", "get", "DELETE", "PUT", "DEBUG"):
        yield http("methods", f"{method} a list", method, ENTITIES, (400, 405))
    for method in ("GET", "PUT", "DELETE"):
        yield http("methods", f"{method} log-in", method, "/auth/login", 405, who=None)


def _cursor(target: Target) -> str:
    for _ in range(2):
        target.create("user", "a page of them")
    return str(target.request("GET", f"{ENTITIES}?limit=1").json()["nextCursor"])


def _foreign_cursor(target: Target) -> Reply:
    return target.request("GET", f"/api/v1/jobs?limit=1&cursor={_cursor(target)}")


def _stolen_cursor(target: Target) -> Reply:
    return target.request("GET", f"{ENTITIES}?limit=1&cursor={_cursor(target)}", who="other")


def _turned_cursor(target: Target) -> Reply:
    cursor = _cursor(target)
    middle = len(cursor) // 2
    turned = "A" if cursor[middle] != "A" else "B"
    return target.request("GET", f"{ENTITIES}?limit=1&cursor={cursor[:middle]}{turned}{cursor[middle + 1 :]}")
