"""The ledger's SQL, one statement a move, in the order of a job's life. Read beside ``ledger.py``.

Sets come in as one JSON document (see ``repository.py``) or as array literals.
"""

from sqlalchemy import text

CLOCK = text("SELECT clock_timestamp()")

KEPT_ATTEMPTS = 50
"""Failed attempts that a job remembers; the earliest are forgotten first."""


def _moment(expression: str) -> str:
    return f"to_char({expression} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


def _with_attempt(attempt: str, reason: str) -> str:
    """The attempts of job ``j`` with one more."""
    return f"""jsonb_path_query_array(
            COALESCE(j.attempts, '[]') || jsonb_build_object(
                'generation', j.generation, 'attempt', {attempt}, 'at', {_moment("clock_timestamp()")},
                'reason', {reason}),
            '$[last - {KEPT_ATTEMPTS - 1} to last]')"""


COPIED = (
    "id, lane, operation, resource, resource_id, principal_id, door, priority, payload, if_match, run_at, "
    "expires_at, request_id, callback_endpoint_id, reply_to, correlation_id, traceparent, parent_id, role"
)

ACCEPT = text(f"""
WITH incoming AS MATERIALIZED (
    SELECT r.*, nextval('job_sequence') AS n, r.run_at IS NOT NULL AND r.run_at > now() AS is_later
    FROM json_populate_recordset(NULL::jobs, CAST(:batch AS json)) AS r
), added AS (
    INSERT INTO jobs ({COPIED}, sequence, position, state, announce_at)
    SELECT {COPIED}, n, n,
           CASE WHEN is_later THEN 'scheduled' ELSE 'queued' END,
           CASE WHEN is_later THEN run_at ELSE now() + :rescue END
    FROM incoming
    RETURNING id, state, sequence, created_at
), told AS (
    INSERT INTO job_events (sequence, job_id, state, at) SELECT sequence, id, state, created_at FROM added
)
SELECT id, state, sequence, created_at, CAST(CAST(pg_current_xact_id() AS text) AS bigint) FROM added
""")

IS_UNDER_WAY = text("""
SELECT pg_xact_status(CAST(CAST(:transaction_id AS text) AS xid8)) = 'in progress'
""")

TRY_LANES = text("""
WITH named AS MATERIALIZED (  -- by primary key: the planner must not walk every open job for it
    SELECT lane, state FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))
), lanes AS MATERIALIZED (
    SELECT DISTINCT lane FROM named WHERE state IN ('queued', 'retrying') ORDER BY lane
)
SELECT lane, pg_try_advisory_xact_lock(lane) FROM lanes
""")

TRY_OLDEST_LANES = text("""
SELECT lane FROM (
    SELECT lane FROM jobs
    WHERE announce_at IS NOT NULL AND state = 'queued' AND priority = :priority AND crashes = 0
    ORDER BY announce_at LIMIT :room * 4
) AS oldest
WHERE pg_try_advisory_xact_lock(lane) LIMIT :room
""")

WAIT_LANE = text("SELECT pg_advisory_xact_lock(:lane)")

OPEN_JOBS = text("""
SELECT id, lane, operation, resource, resource_id, principal_id, CAST(payload AS text), if_match,
       attempt, crashes, announcements,
       state = 'queued' OR run_at IS NULL OR run_at <= clock_timestamp(),
       COALESCE(expires_at <= clock_timestamp(), false), request_id, created_at,
       CASE WHEN crashes > 0 THEN crash_log END, parent_id, role
FROM jobs
WHERE lane = ANY(CAST(:lanes AS bigint[])) AND state IN ('queued', 'retrying')
ORDER BY position LIMIT :limit
FOR NO KEY UPDATE
""")

FINISH = text(f"""
WITH outcome AS MATERIALIZED (
    SELECT o.*, nextval('job_sequence') AS n
    FROM json_to_recordset(CAST(:outcomes AS json))
      AS o(id uuid, state text, attempt int, version bigint, result json, error jsonb, reason text)
), done AS (
    UPDATE jobs AS j
    SET state = o.state, sequence = o.n, attempt = o.attempt, version = o.version, result = o.result,
        error = o.error, finished_at = clock_timestamp(), announce_at = NULL,
        attempts = CASE WHEN o.reason IS NULL THEN j.attempts
                        ELSE {_with_attempt("o.attempt", "o.reason")} END
    FROM outcome AS o
    WHERE j.id = o.id AND j.state IN ('scheduled', 'queued', 'retrying')
      AND (o.state <> 'succeeded' OR j.expires_at IS NULL OR j.expires_at > clock_timestamp())
    RETURNING j.id, j.sequence, j.state, j.finished_at, j.principal_id, j.callback_endpoint_id, j.reply_to,
              j.attempt, j.run_at, j.expires_at, j.error, j.generation
), told AS (  -- what is told of a job must not change when the job is redriven: a success never is
    INSERT INTO job_events (sequence, job_id, state, at, detail)
    SELECT sequence, id, state, finished_at,
           CASE WHEN state <> 'succeeded' THEN jsonb_build_object(
               'attempt', attempt, 'runAt', run_at, 'expiresAt', expires_at, 'error', error,
               'generation', generation) END
    FROM done
), outbox AS (
    INSERT INTO deliveries (id, kind, job_id, sequences, endpoint_id, reply_to, announce_at)
    SELECT waybill_uuid7(), 'callback', d.id, ARRAY[d.sequence], e.id, NULL, now()
    FROM done AS d JOIN callback_endpoints AS e
      ON e.id = d.callback_endpoint_id
      OR (e.owner_id = d.principal_id AND 'job.' || d.state = ANY(e.events) AND NOT e.disabled)
    UNION ALL
    SELECT waybill_uuid7(), 'reply', d.id, ARRAY[d.sequence], NULL, d.reply_to, now()
    FROM done AS d WHERE d.reply_to IS NOT NULL
    UNION ALL
    SELECT waybill_uuid7(), 'events', NULL, array_agg(d.sequence ORDER BY d.sequence), NULL, NULL, now()
    FROM done AS d HAVING count(*) > 0
    RETURNING id, kind
), awake AS MATERIALIZED (
    SELECT pg_notify('waybill_jobs', '')
)
SELECT (SELECT count(*) FROM done),
       (SELECT array_agg(id) FROM outbox WHERE kind <> 'events'),
       (SELECT count(*) FROM awake)
""")

EFFECTS = text("""
INSERT INTO deliveries (id, kind, job_id, sequences, target, announce_at)
SELECT waybill_uuid7(), 'effect', j.id, ARRAY[j.sequence], d.effect, now()
FROM jobs AS j
JOIN json_to_recordset(CAST(:declared AS json)) AS d(resource text, operation text, effect text)
  ON d.resource = j.resource AND d.operation = j.operation
WHERE j.id = ANY(CAST(:ids AS uuid[]))
RETURNING id
""")

RETRY_LATER = text(f"""
WITH put_off AS (
    UPDATE jobs AS j
    SET state = 'retrying', sequence = nextval('job_sequence'), attempt = :attempt,
        run_at = clock_timestamp() + :delay, announce_at = clock_timestamp() + :delay,
        announcements = 0, crashes = 0, crash_log = NULL, error = CAST(:error AS jsonb),
        attempts = {_with_attempt(":attempt", "CAST(:reason AS text)")}
    WHERE id = :id AND state IN ('queued', 'retrying')
    RETURNING id, sequence, error
), awake AS MATERIALIZED (SELECT pg_notify('waybill_jobs', ''))
INSERT INTO job_events (sequence, job_id, state, at, detail)
SELECT sequence, id, 'retrying', clock_timestamp(), error FROM put_off, awake
""")

CRASH_ATTEMPT = text(f"""
UPDATE jobs
SET crashes = crashes + 1,
    crash_log = COALESCE(crash_log, '[]') || jsonb_build_object(
        'worker', CAST(:worker AS text), 'at', {_moment("clock_timestamp()")}, 'signal', NULL)
WHERE id = :id AND state IN ('queued', 'retrying') RETURNING crash_log -> -1 ->> 'at'
""")

HASTE = text("SET LOCAL lock_timeout = '50ms'")

TAKE_BACK_CRASH_ATTEMPT = text("""
UPDATE jobs AS j
SET crashes = crashes - 1, crash_log = (
    SELECT jsonb_agg(entry ORDER BY place)
    FROM jsonb_array_elements(j.crash_log) WITH ORDINALITY AS log(entry, place)
    WHERE NOT entry @> jsonb_build_object('worker', CAST(:worker AS text), 'at', CAST(:at AS text))
)
WHERE id = :id AND state IN ('queued', 'retrying')
  AND crash_log @> jsonb_build_array(
      jsonb_build_object('worker', CAST(:worker AS text), 'at', CAST(:at AS text)))
""")

WITNESS_CRASH = text("""
UPDATE jobs AS j
SET crash_log = (
    SELECT jsonb_agg(
        CASE WHEN entry->>'worker' = :worker AND entry->>'signal' IS NULL
             THEN jsonb_set(entry, '{signal}', to_jsonb(CAST(:signal AS text))) ELSE entry END ORDER BY place)
    FROM jsonb_array_elements(j.crash_log) WITH ORDINALITY AS log(entry, place)
)
WHERE j.announce_at IS NOT NULL AND j.state IN ('queued', 'retrying') AND j.crashes > 0
  AND j.crash_log @> jsonb_build_array(
      jsonb_build_object('worker', CAST(:worker AS text), 'signal', CAST(NULL AS text)))
""")

SUSPECT = text("""
UPDATE jobs
SET announcements = GREATEST(announcements, :announcements), announce_at = LEAST(announce_at, now())
WHERE id = ANY(CAST(:ids AS uuid[])) AND state = 'queued'
""")

# Whose job it was is told to nobody else.
DEAD_PREDECESSORS = text("""
SELECT j.id, CASE WHEN dead.principal_id = j.principal_id THEN dead.id END
FROM jobs AS j CROSS JOIN LATERAL (
    SELECT d.id, d.principal_id FROM jobs AS d
    WHERE d.lane = j.lane AND d.state = 'dead' AND d.position < j.position AND d.finished_at > j.created_at
    ORDER BY d.position DESC LIMIT 1) AS dead
WHERE j.id = ANY(CAST(:ids AS uuid[]))
""")

LOCK_JOB = text("SELECT state, attempt FROM jobs WHERE id = :id FOR NO KEY UPDATE")

REDRIVE = text("""
WITH given AS MATERIALIZED (
    SELECT r.*, nextval('job_sequence') AS n
    FROM json_to_recordset(CAST(:redrives AS json)) AS r(id uuid, payload json)
), revived AS (
    UPDATE jobs AS j
    SET state = 'queued', sequence = g.n, position = g.n, generation = j.generation + 1,
        payload = COALESCE(g.payload, j.payload), attempt = 0, crashes = 0, crash_log = NULL,
        announcements = 0, run_at = NULL, finished_at = NULL, error = NULL, announce_at = now() + :rescue
    FROM given AS g
    WHERE j.id = g.id AND j.state = 'dead' AND j.discarded_at IS NULL
    RETURNING j.id, j.sequence, j.generation
), told AS (
    INSERT INTO job_events (sequence, job_id, state, at, detail)
    SELECT sequence, id, 'queued', now(), jsonb_build_object('generation', generation) FROM revived
), awake AS MATERIALIZED (SELECT pg_notify('waybill_jobs', ''))
SELECT (SELECT count(*) FROM revived), (SELECT count(*) FROM awake)
""")

DISCARD = text("""
WITH given AS MATERIALIZED (
    SELECT id, nextval('job_sequence') AS n FROM jobs
    WHERE id = ANY(CAST(:ids AS uuid[])) AND state = 'dead' AND discarded_at IS NULL
), put_away AS (
    UPDATE jobs AS j SET discarded_at = now(), sequence = g.n FROM given AS g
    WHERE j.id = g.id AND j.state = 'dead' AND j.discarded_at IS NULL
    RETURNING j.id, g.n, j.attempt, j.run_at, j.expires_at, j.error, j.generation
), told AS (
    INSERT INTO job_events (sequence, job_id, state, at, detail)
    SELECT n, id, 'dead', now(), jsonb_build_object(
        'attempt', attempt, 'runAt', run_at, 'expiresAt', expires_at, 'error', error,
        'generation', generation, 'discarded', true) FROM put_away
), outbox AS (
    INSERT INTO deliveries (id, kind, job_id, sequences, announce_at)
    SELECT waybill_uuid7(), 'events', NULL, array_agg(n ORDER BY n), now() FROM put_away HAVING count(*) > 0
)
SELECT id FROM put_away
""")

TRY_WAKING = text(f"SELECT pg_try_advisory_xact_lock({0x5741_5942}, 2)")
"""Two numbers ("WAYB"), so it is no lane; retention has the first of them."""

# Where somebody has hold of a job, those behind it in its lane wait for the next time.
WAKE = text("""
WITH due AS MATERIALIZED (
    SELECT id, lane, row_number() OVER (ORDER BY announce_at, position) AS place FROM jobs
    WHERE state = 'scheduled' AND announce_at <= now()
    ORDER BY announce_at, position LIMIT :limit
), free AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE id IN (SELECT id FROM due) AND state = 'scheduled' FOR NO KEY UPDATE SKIP LOCKED
), held AS MATERIALIZED (
    SELECT lane, min(place) AS place FROM due WHERE id NOT IN (SELECT id FROM free) GROUP BY lane
), numbered AS MATERIALIZED (
    SELECT id, nextval('job_sequence') AS n FROM (
        SELECT due.id FROM due JOIN free USING (id) LEFT JOIN held USING (lane)
        WHERE held.place IS NULL OR due.place < held.place ORDER BY due.place) AS first
), woken AS (
    UPDATE jobs AS j SET state = 'queued', sequence = d.n, position = d.n
    FROM numbered AS d WHERE j.id = d.id AND j.state = 'scheduled'
    RETURNING j.id, j.sequence
), awake AS MATERIALIZED (SELECT pg_notify('waybill_jobs', ''))
INSERT INTO job_events (sequence, job_id, state, at)
SELECT sequence, id, 'queued', now() FROM woken, awake
""")

DUE = text("""
WITH due AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE announce_at <= now() AND state IN ('queued', 'retrying') AND priority = :priority
    ORDER BY announce_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
), claimed AS (
    UPDATE jobs AS j
    SET announce_at = now() + :again, announcements = announcements + 1,
        announced_at = (COALESCE(announced_at, '{}') || now())[GREATEST(1, cardinality(announced_at) - 8):]
    FROM due WHERE j.id = due.id
    RETURNING j.id, j.position
)
SELECT id FROM claimed ORDER BY position
""")

LOCK_EXPIRED = text("""
SELECT id, attempt FROM jobs
WHERE expires_at <= now() AND announce_at IS NOT NULL
ORDER BY expires_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
""")

JOB_COLUMNS = (
    "id, state, operation, resource, resource_id, principal_id, attempt, priority, created_at, run_at, "
    "finished_at, expires_at, version, CAST(result AS text), error, request_id, attempts, "
    "generation, parent_id, sequence"
)

FIND = text(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))")

LANES_IN_USE = text("""
SELECT DISTINCT lane FROM jobs
WHERE lane = ANY(CAST(:lanes AS bigint[])) AND state IN ('queued', 'retrying')
  AND (CAST(:principal_id AS uuid) IS NULL OR principal_id = :principal_id)
""")

BACKLOG = text("""
SELECT state, priority, count(*), extract(epoch FROM now() - min(created_at))
FROM jobs WHERE announce_at IS NOT NULL GROUP BY state, priority
""")
