"""What is measured, by name. Names are stored in dashboards and alerts: never renamed. No exposition.

With ``PROMETHEUS_MULTIPROC_DIR`` in the environment every process of the platform adds to the same
counters; ``/metrics`` then shows their sum.
"""

from prometheus_client import Counter, Gauge, Histogram

from models.job import FINAL, Door

_MILLISECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_ACCEPTED = Counter("waybill_jobs_accepted_total", "Jobs accepted into the ledger", ["door"])
JOBS_ACCEPTED = {str(door): _ACCEPTED.labels(str(door)) for door in Door}
"""By door."""

_FINISHED = Counter("waybill_jobs_finished_total", "Jobs that reached a final state", ["state"])
JOBS_FINISHED = {str(state): _FINISHED.labels(str(state)) for state in FINAL}
"""By final state."""

INTAKE_BATCH_SIZE = Histogram(
    "waybill_intake_batch_size", "Jobs in one intake transaction", buckets=(1, 2, 5, 10, 20, 50, 100, 200)
)

HTTP_REQUEST_SECONDS = Histogram(
    "waybill_http_request_seconds",
    "Time from a request's head to its answer",
    ["route", "method", "status"],
    buckets=_MILLISECONDS,
)

ANNOUNCE_SECONDS = Histogram(
    "waybill_announce_seconds", "Time to publish one announcement, confirm included", buckets=_MILLISECONDS
)

APPLY_SECONDS = Histogram(
    "waybill_apply_seconds",
    "Time from acceptance to the final state",
    buckets=(*_MILLISECONDS, 60.0, 300.0, 1800.0, 7200.0),
)

INVALID_REQUESTS = Counter(
    "waybill_invalid_requests_total", "Connections closed because what came was no HTTP", ["reason"]
)

DEAD_MESSAGES = Counter(
    "waybill_dead_messages_total", "Messages collected from the broker's dead-letter queue", ["reason"]
)

REFUSALS = Counter("waybill_http_refusals_total", "Requests that were refused, by error", ["error"])

DATABASE_SECONDS = Histogram(
    "waybill_database_seconds", "Time of one database statement, the network included", buckets=_MILLISECONDS
)

DELIVERIES = Counter("waybill_deliveries_total", "Delivery attempts by kind and result", ["kind", "result"])

DELIVERY_SECONDS = Histogram(
    "waybill_delivery_seconds",
    "Time from the outcome to its delivery",
    ["kind"],
    buckets=(*_MILLISECONDS, 60.0, 300.0, 1800.0, 7200.0, 43200.0),
)

SEND_SECONDS = Histogram(
    "waybill_send_seconds", "Time that one attempt over HTTP takes", ["kind"], buckets=_MILLISECONDS
)

ENDPOINTS_DISABLED = Counter("waybill_callback_endpoints_disabled_total", "Endpoints disabled by us")

SENDS_WAITING = Gauge(
    "waybill_sends_waiting",
    "Deliveries claimed by this process that wait for their receiver's turn",
    multiprocess_mode="livesum",
)

STREAMS = Gauge(
    "waybill_streams", "Event streams and WebSockets that are open", ["kind"], multiprocess_mode="livesum"
)

CHANGE_READS = Counter("waybill_change_reads_total", "Readings of the ledger for all who wait for changes")

CACHE_READS = Counter(
    "waybill_cache_reads_total",
    "Reads by what the cache had: hit, miss, or bypass (somebody is changing it, or the cache is away)",
    ["kind", "outcome"],
)

PRUNED_ROWS = Counter("waybill_pruned_rows_total", "Rows deleted past their retention", ["table"])

RETENTION_BEHIND = Gauge(
    "waybill_retention_behind_seconds",
    "How long after its time the job was that this process pruned last; 0 once it is through",
    multiprocess_mode="livemax",
)

RETENTION_LAST_RUN = Gauge(
    "waybill_retention_last_run_timestamp_seconds",
    "When nothing was left to prune, the last time that one looked",
    multiprocess_mode="max",
)

LIMITER_SECONDS = Histogram(
    "waybill_limiter_seconds",
    "Time of one round trip to Redis that counts requests",
    buckets=(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2),
)

LIMITS_SHARED = Gauge(
    "waybill_limits_shared",
    "Whether limits are counted in Redis (1) or in the process alone (0); the least of all processes",
    multiprocess_mode="livemin",
)
