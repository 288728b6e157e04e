-- Guarantee: a lock is prolonged only while it lives, only by its own lock_key (and fencing token, where one is
-- given), and never shortened. A lock that ended is not made anew. In mode "all" either every lock is prolonged or
-- nothing changes.
-- KEYS: locks, expiry, events, then per slot: record, then per slot: lock
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, max_lock_ms, scope, mode, then per slot: slot_id, lock_key, until, fencing_token
--   scope is "registered", or "any" where a slot needs no record; mode is "each" or "all";
--   until is a date in ms, or +ms counted from now; an empty fencing_token stands for any
-- Reply: now_us, then per slot: tag, record, locked_until_ms, fencing_token
-- Tags: yours, gone, taken, not_found, not_lockable, disabled, full, past, too_long, corrupt, withheld
local FIRST_KEY, HEAD, STRIDE = 4, 7, 4
local FAIR, MAKES = false, false
-- include: clock
-- include: slots
-- include: state
-- include: events
-- include: availability
-- include: grant
