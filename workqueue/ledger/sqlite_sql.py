"""The statements of a SQLite ledger. Each is one transaction."""

from workqueue.ledger.clock import BOOT_LENGTH
from workqueue.ledger.texts import STORY_LENGTH

AT_ONCE = 500  # tasks in a statement: SQLite allows 999 parameters where it was built with the old limit

# Each time another value: what stays the same SQLite does not write.
CHECK = "INSERT OR REPLACE INTO workqueue_meta VALUES ('checked', ?)"
NEW = """
INSERT OR IGNORE INTO task
    (id, state, fence, holder, worker, lease_until, ends_at, kind, digest, alone, created_at)
VALUES (?1, 'running', 1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, CAST(?9 AS INTEGER))
"""
# A holder whose name begins with the boot has its lease by the steady clock.
OVER = f"iif(substr(holder, 1, {BOOT_LENGTH + 1}) = ?12, ends_at < ?11, lease_until < ?9)"
AGAIN = f"""
UPDATE task SET state = 'running', fence = fence + 1,
    crashes = crashes || iif(state = 'running', strftime('%Y-%m-%dT%H:%M:%SZ') || ' ' || worker
        || char(9) || fence || iif(alone = fence, ' alone', '') || char(10), ''),
    holder = ?2, worker = ?3, lease_until = ?4, ends_at = ?5, kind = ?6, digest = coalesce(digest, ?7),
    alone = iif(?8, fence + 1, NULL), claimed_at = CAST(?9 AS INTEGER), next_at = NULL
WHERE id = ?1 AND cancel IS NULL AND (digest IS NULL OR ?7 IS NULL OR digest = ?7) AND CASE state
    WHEN 'running' THEN holder = ?10 OR {OVER}
    WHEN 'waiting' THEN next_at IS NOT lease_until OR {OVER}
END
RETURNING fence, crashes, attempts, checkpoint
"""
STATE = "iif(error = cancel, 'cancelled', state)"
# As `client.Status` has it: whose claim is not alive, which `Holders.held` says, nobody has.
SHOWN = """
CASE WHEN error = cancel THEN 'cancelled' WHEN state IN ('done', 'dead') THEN state
    WHEN state = 'running' AND held(holder, lease_until, ends_at) THEN 'running'
    WHEN cancel IS NULL THEN 'waiting' ELSE 'cancelled' END
"""
SEEK = f"""
SELECT {STATE}, fence, holder, lease_until, ends_at, next_at, digest, attempts, cancel FROM task WHERE id = ?
"""
CHANGE = "UPDATE task SET {} WHERE id = ? AND fence = ? AND state = 'running'"
# A row that is done needs no lease, and a shorter row is a quicker one.
FINISHED = "attempts = ?, finished_at = ?, holder = '', lease_until = 0, ends_at = NULL"
COMPLETE = CHANGE.format(f"state = 'done', result = ?, checkpoint = NULL, {FINISHED}")
IS_DONE = "SELECT id FROM task WHERE id = ? AND fence = ? AND state = 'done'"
STORY = f"story = nullif(substr(coalesce(story, '') || ?, -{STORY_LENGTH}), '')"
BURY = CHANGE.format(f"state = 'dead', error = ?, {STORY}, {FINISHED}")
SAVE = CHANGE.format("checkpoint = ?")
RENEW = CHANGE.format("lease_until = ?, ends_at = ?")
RENEW_ALONE = CHANGE.format("lease_until = ?, ends_at = ?, alone = iif(?, fence, NULL)")
FAILED = f"state = 'waiting', attempts = coalesce(?, attempts), last_error = coalesce(?, last_error), {STORY}"
RELEASE = CHANGE.format(FAILED)
RELEASE_UNTIL = CHANGE.format(f"{FAILED}, next_at = ?, lease_until = ?, ends_at = ?")
REVIVE = f"""
UPDATE task SET state = 'waiting', fence = fence + 1, attempts = 0, crashes = '', {STORY}, last_error = error,
    error = NULL, finished_at = NULL, next_at = NULL, lease_until = ?
WHERE id = ? AND fence = ? AND state = 'dead' AND error IS NOT cancel
"""
LINE_END = "instr(error || char(10), char(10))"  # of the first one
TELL = f"""
UPDATE task SET error = substr(error, 1, {LINE_END} - 1) || ?1 || substr(error, {LINE_END}), {STORY}
WHERE id = ? AND fence = ? AND state = 'dead' AND error IS NOT cancel AND instr(error, ?1) = 0
"""
CANCEL = """
UPDATE task SET cancel = coalesce(cancel, ?2), state = iif(state = 'waiting', 'dead', state),
    error = iif(state = 'waiting', coalesce(cancel, ?2), error), finished_at = iif(state = 'waiting', ?3, NULL),
    fence = fence + (state = 'waiting')
WHERE id = ?1 AND state IN ('waiting', 'running')
RETURNING state
"""
# By a fence that no claim has, and no dead letter.
CANCEL_UNKNOWN = """
INSERT OR IGNORE INTO task (id, state, fence, holder, worker, lease_until, cancel, error, finished_at)
VALUES (?1, 'dead', 0, '', '', ?3, ?2, ?2, ?3)
"""
CANCEL_ENDED = """
UPDATE task SET state = 'dead', fence = fence + 1, error = cancel, finished_at = ?
WHERE id = ? AND fence = ? AND state IN ('waiting', 'running')
"""
TO_CANCEL = "SELECT id, cancel FROM task WHERE id IN ({}) AND state = 'running' AND cancel IS NOT NULL"
RECORD = """
INSERT OR IGNORE INTO task (lease_until, created_at, id, state, fence, holder, worker, kind, digest) VALUES {}
"""
SENT = "(?1, CAST(?1 AS INTEGER), ?, 'waiting', 0, '', '', ?, ?)"
ENTRY = f"""
SELECT {STATE}, kind, digest, worker, holder, lease_until, ends_at, attempts, created_at,
    coalesce(claimed_at, iif(fence > 0, created_at, NULL)),
    iif(state = 'waiting' AND next_at = lease_until, next_at, NULL), finished_at, result, error, last_error,
    story, crashes, cancel
FROM task WHERE id = ?
"""
OUTCOMES = f"""
SELECT id, {STATE}, worker, attempts, result, error, finished_at, kind, last_error, digest
FROM task WHERE finished_at IS NOT NULL AND id IN ({{}})
"""
STRETCH_END = f"SELECT max(id) FROM (SELECT id FROM task WHERE id > ? ORDER BY id LIMIT {AT_ONCE})"
FORGET = "DELETE FROM task WHERE id > ? AND id <= ? AND coalesce(finished_at, lease_until) < ?"
ERASE = "DELETE FROM task WHERE id = ? AND finished_at IS NOT NULL"
