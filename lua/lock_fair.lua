-- Guarantee: as `lock`; and where another key holds a slot, or comes before, the caller's ticket joins the line of the
-- slot. It lives for three seconds and is renewed by the same call. Whatever ends a lock gives the slot to the first in
-- line whose ticket lives, in the same step; what is given so is "locked" when its owner comes for it.
-- KEYS: locks, expiry, events, then per slot: record, then per slot: lock
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, max_lock_ms, scope, mode, then per slot: slot_id,
-- lock_key, until, ticket
--   all but the ticket as for `lock`; mode is "each"
-- Reply: now_us, then per slot: tag, record, locked_until_ms, fencing_token
--   as of `lock`
-- Tags: locked, yours, taken, too_many, not_found, not_lockable, disabled, full, past, too_long, corrupt, withheld
local FIRST_KEY, HEAD, STRIDE = 4, 7, 4
local FAIR, MAKES = true, true
-- include: clock
-- include: slots
-- include: state
-- include: events
-- include: availability
-- include: grant
