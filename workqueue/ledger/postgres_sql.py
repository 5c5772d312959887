"""The statements of a PostgreSQL ledger. Each is one transaction."""

from workqueue.ledger.texts import STORY_LENGTH

MANY_LOCK_S = 0.02  # how long a statement for many tasks waits for the lock of one of them
# In the order of ids, so that no two statements wait for each other in a circle. The setting ends with the transaction,
# which is this statement, and is made before a row is locked.
MANY = f"""
WITH impatient AS MATERIALIZED (SELECT set_config('lock_timeout', '{MANY_LOCK_S * 1000:.0f}ms', true)),
asked AS MATERIALIZED (SELECT asked.* FROM impatient, unnest({{}}) AS asked ({{}}) ORDER BY id)
"""
# Made already, for this request, and nobody has claimed the task since: where it runs, the answer was lost. Where it is
# given back, the wish is over: this statement is one that nobody waits for, and those that undid it came first.
MADE = "task.request = excluded.request AND task.requested = task.fence"
OWN = f"task.state = 'running' AND {MADE}"
NEXT = f"task.fence + CASE WHEN {OWN} THEN 0 ELSE 1 END"
CLAIMING = f"""
INSERT INTO workqueue_task AS task
    (id, state, fence, worker, lease_until, kind, digest, alone, created_at, request, requested)
{{}}
ON CONFLICT (id) DO UPDATE SET state = 'running', fence = {NEXT}, request = excluded.request, requested = {NEXT},
    crashes = task.crashes || CASE WHEN task.state = 'running' AND ({OWN}) IS NOT TRUE THEN
        to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ' ' || task.worker
        || chr(9) || task.fence || CASE WHEN task.alone = task.fence THEN ' alone' ELSE '' END || chr(10)
        ELSE '' END,
    worker = excluded.worker, lease_until = excluded.lease_until, kind = excluded.kind,
    digest = coalesce(task.digest, excluded.digest),
    alone = CASE WHEN excluded.alone = 1 THEN {NEXT} END, claimed_at = excluded.created_at, next_at = NULL
WHERE task.cancel IS NULL
    AND (task.digest IS NULL OR excluded.digest IS NULL OR task.digest = excluded.digest)
    AND CASE task.state
    WHEN 'running' THEN task.lease_until < clock_timestamp() OR {OWN}
    WHEN 'waiting' THEN ({MADE}) IS NOT TRUE
        AND (task.next_at IS DISTINCT FROM task.lease_until OR task.lease_until < clock_timestamp())
END
RETURNING id, fence, crashes, attempts, checkpoint
"""
CLAIM = CLAIMING.format(
    "VALUES (%s, 'running', 1, %s, clock_timestamp() + %s * interval '1 second', %s, %s, CASE WHEN %s THEN 1 END,"
    " clock_timestamp(), %s, 1)"
)
CLAIM_MANY = MANY.format(
    "%s::uuid[], %s::text[], %s::float8[], %s::text[], %s::bytea[], %s::boolean[], %s::uuid[]",
    "id, worker, lease_s, kind, digest, alone, request",
) + CLAIMING.format(
    "SELECT id, 'running', 1, worker, clock_timestamp() + lease_s * interval '1 second', kind, digest,"
    " CASE WHEN alone THEN 1 END, clock_timestamp(), request, 1 FROM asked"
)
# Of two at a time one waits for the other, and finds another number then. What the one before has on its way to the
# server still finds another fence.
ADOPT = """
UPDATE workqueue_task SET request = %s, fence = fence + 1, requested = fence + 1
WHERE id = %s AND request = %s AND requested = fence AND state = 'running'
"""
STATE = "CASE WHEN error = cancel THEN 'cancelled' ELSE state END"
# As `client.Status` has it: whose lease has ended, nobody has.
SHOWN = """
CASE WHEN error = cancel THEN 'cancelled' WHEN state IN ('done', 'dead') THEN state
    WHEN state = 'running' AND lease_until > clock_timestamp() THEN 'running'
    WHEN cancel IS NULL THEN 'waiting' ELSE 'cancelled' END
"""
SEEK = f"""
SELECT {STATE}, fence, extract(epoch FROM lease_until - clock_timestamp())::float8, next_at = lease_until, digest,
    attempts, cancel, CASE WHEN requested = fence THEN request END
FROM workqueue_task WHERE id = %s
"""
CHANGE = "UPDATE workqueue_task SET {} WHERE id = %s AND fence = %s AND state = 'running'"
COMPLETED = "state = 'done', attempts = {}, result = {}, checkpoint = NULL, finished_at = clock_timestamp()"
COMPLETE = CHANGE.format(COMPLETED.format("%s", "%s")) + " RETURNING id"
COMPLETE_MANY = (
    MANY.format("%s::integer[], %s::text[], %s::uuid[], %s::bigint[]", "attempts, result, id, fence")
    + f"""
UPDATE workqueue_task AS task SET {COMPLETED.format("asked.attempts", "asked.result")} FROM asked
WHERE task.id = asked.id AND task.fence = asked.fence AND task.state = 'running' RETURNING task.id
"""
)
IS_DONE = "SELECT id FROM workqueue_task WHERE id = %s AND fence = %s AND state = 'done'"
STORY = f"story = nullif(right(coalesce(story, '') || %s, {STORY_LENGTH}), '')"
BURY = CHANGE.format(f"state = 'dead', attempts = %s, error = %s, {STORY}, finished_at = clock_timestamp()")
SAVE = CHANGE.format("checkpoint = %s")
LATER = "statement_timestamp() + %s * interval '1 second'"
RENEW = CHANGE.format(f"lease_until = {LATER}")
RENEW_ALONE = CHANGE.format(f"lease_until = {LATER}, alone = CASE WHEN %s THEN fence END")
FAILED = f"state = 'waiting', attempts = coalesce(%s, attempts), last_error = coalesce(%s, last_error), {STORY}"
RELEASE = CHANGE.format(FAILED)
RELEASE_UNTIL = CHANGE.format(f"{FAILED}, next_at = {LATER}, lease_until = {LATER}")  # the same instant in both
REVIVE = f"""
UPDATE workqueue_task SET state = 'waiting', fence = fence + 1, attempts = 0, crashes = '', {STORY}, last_error = error,
    error = NULL, finished_at = NULL, next_at = NULL, lease_until = clock_timestamp()
WHERE id = %s AND fence = %s AND state = 'dead' AND error IS DISTINCT FROM cancel
"""
LINE_END = "strpos(error || chr(10), chr(10))"  # of the first one
TELL = f"""
UPDATE workqueue_task SET error = left(error, {LINE_END} - 1) || %s || substr(error, {LINE_END}), {STORY}
WHERE id = %s AND fence = %s AND state = 'dead' AND error IS DISTINCT FROM cancel AND strpos(error, %s) = 0
"""
CANCEL = """
UPDATE workqueue_task SET cancel = coalesce(cancel, %(told)s),
    state = CASE state WHEN 'waiting' THEN 'dead' ELSE state END,
    error = CASE state WHEN 'waiting' THEN coalesce(cancel, %(told)s) ELSE error END,
    finished_at = CASE state WHEN 'waiting' THEN clock_timestamp() END,
    fence = fence + CASE state WHEN 'waiting' THEN 1 ELSE 0 END
WHERE id = %(id)s AND state IN ('waiting', 'running')
RETURNING state
"""
# By a fence that no claim has, and no dead letter.
CANCEL_UNKNOWN = """
INSERT INTO workqueue_task (id, state, fence, worker, lease_until, cancel, error, finished_at)
VALUES (%(id)s, 'dead', 0, '', clock_timestamp(), %(told)s, %(told)s, clock_timestamp()) ON CONFLICT (id) DO NOTHING
"""
CANCEL_ENDED = """
UPDATE workqueue_task SET state = 'dead', fence = fence + 1, error = cancel, finished_at = clock_timestamp()
WHERE id = %s AND fence = %s AND state IN ('waiting', 'running')
"""
TO_CANCEL = """
SELECT id, cancel FROM workqueue_task WHERE id = ANY(%s) AND state = 'running' AND cancel IS NOT NULL
"""
RECORD = """
INSERT INTO workqueue_task (id, state, fence, worker, lease_until, kind, digest, created_at)
SELECT id, 'waiting', 0, '', clock_timestamp(), kind, digest, clock_timestamp()
FROM unnest(%s::uuid[], %s::text[], %s::bytea[]) AS sent (id, kind, digest)
ON CONFLICT (id) DO NOTHING
"""
ENTRY = f"""
SELECT id, {STATE}, kind, digest, worker, state = 'running' AND lease_until > clock_timestamp(), attempts,
    extract(epoch FROM created_at)::float8,
    extract(epoch FROM coalesce(claimed_at, CASE WHEN fence > 0 THEN created_at END))::float8,
    CASE WHEN state = 'waiting' AND next_at = lease_until THEN extract(epoch FROM next_at)::float8 END,
    extract(epoch FROM finished_at)::float8, result, error, last_error, story, crashes, cancel
FROM workqueue_task WHERE id = %s
"""
OUTCOMES = f"""
SELECT id, {STATE}, worker, attempts, result, error, extract(epoch FROM finished_at)::float8, kind, last_error, digest
FROM workqueue_task WHERE finished_at IS NOT NULL AND id = ANY(%s)
"""
PRUNE = """
DELETE FROM workqueue_task WHERE coalesce(finished_at, lease_until) < clock_timestamp() - %s * interval '1 second'
"""
ERASE = "DELETE FROM workqueue_task WHERE id = %s AND finished_at IS NOT NULL"
# Who has changed or locked rows, or locked the table, and waits for no lock itself; who just reads has not. What the
# role may not see is null, and a prepared transaction has no process.
LOCKS = """
SELECT DISTINCT lock.virtualtransaction, coalesce(lock.pid, 0), coalesce(activity.application_name, prepared.gid, ''),
    coalesce(activity.usename, ''), coalesce(host(activity.client_addr), ''), coalesce(activity.state, ''),
    extract(epoch FROM statement_timestamp() - activity.xact_start)::float8
FROM pg_locks AS lock LEFT JOIN pg_stat_activity AS activity USING (pid)
    LEFT JOIN pg_prepared_xacts AS prepared ON lock.virtualtransaction = '-1/' || prepared.transaction
WHERE lock.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND lock.relation = 'workqueue_task'::regclass AND lock.granted AND lock.pid IS DISTINCT FROM pg_backend_pid()
    AND lock.mode IN ('RowShareLock', 'RowExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
        'AccessExclusiveLock')
    AND NOT EXISTS (SELECT FROM pg_locks AS wanted WHERE wanted.pid = lock.pid AND NOT wanted.granted)
"""
# A row that several have locked has a number there that is no transaction's, and nobody is found.
LOCKS_OF_ROW = f"""{LOCKS} AND lock.virtualtransaction = (
    SELECT holder.virtualtransaction FROM workqueue_task AS task JOIN pg_locks AS holder
    ON holder.locktype = 'transactionid' AND holder.transactionid = task.xmax AND holder.mode = 'ExclusiveLock'
        AND holder.granted
    WHERE task.id = %s LIMIT 1)
"""
