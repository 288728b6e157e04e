-- Guarantee: a slot has one lock at most. A free slot is locked for the caller's lock_key until the date asked for,
-- with a fencing token above every earlier one; the key that holds it already keeps its token, and its date is never
-- shortened; any other key changes nothing. In mode "all" either every slot is locked or nothing changes.
-- KEYS: locks, expiry, then per slot: lock, record
-- ARGV: max_lock_ms, scope, mode, then per slot: slot_id, lock_key, until
--   scope is "registered", or "any" where a slot needs no record; mode is "each" or "all";
--   until is a date in ms, or +ms counted from now
-- Reply: now_us, then per slot: tag, record, locked_until_ms, fencing_token
-- Tags: locked, yours, taken, not_found, not_lockable, disabled, full, past, too_long, corrupt, withheld
local FIRST_KEY, HEAD, STRIDE = 3, 3, 3
local MAKES = true
-- include: clock
-- include: slots
-- include: locks
-- include: availability
-- include: grant
