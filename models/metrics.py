"""Every metric, named once. Who measures imports it from here; ``/metrics`` shows them all.

Beside these, ``/metrics`` shows what it reads from the ledger when it is asked: ``waybill_jobs`` by
state and priority, and ``waybill_oldest_open_job_seconds`` by priority. With
``PROMETHEUS_MULTIPROC_DIR`` in the environment all processes of the platform add to the same counters.
"""

from prometheus_client import Counter, Histogram

JOBS_ACCEPTED = Counter("waybill_jobs_accepted_total", "Jobs accepted", ["door"])
JOBS_FINISHED = Counter("waybill_jobs_finished_total", "Jobs that reached a final state", ["state"])
INTAKE_BATCH = Histogram(
    "waybill_intake_batch_size",
    "Submissions that shared one transaction",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200),
)
ANNOUNCE_SECONDS = Histogram("waybill_announce_seconds", "From handing over an announcement to its confirm")
APPLY_SECONDS = Histogram(
    "waybill_apply_seconds",
    "From acceptance to application",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
HTTP_SECONDS = Histogram(
    "waybill_http_request_seconds",
    "From a request's head to its answer",
    ["route", "method", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
BROKEN_REQUESTS = Counter(
    "waybill_broken_requests_total", "Connections closed because what came was no whole HTTP request", ["reason"]
)
DELIVERIES = Counter("waybill_deliveries_total", "Delivery attempts by kind and result", ["kind", "result"])
