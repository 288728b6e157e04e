-- Guarantee: reads only. Shows each slot as the caller sees it: a lock of its own does not make it unavailable.
-- KEYS: locks, expiry, events, then per slot: record, then per slot: lock
-- ARGV: per slot: slot_id, lock_key
--   an empty lock_key stands for none
-- Reply: now_us, then per slot: tag, record, locked_until_ms, available
-- Tags: found, not_found, corrupt
local FIRST_KEY, HEAD, STRIDE = 4, 0, 2
-- include: clock
-- include: slots
-- include: events
-- include: state
-- include: claim
-- include: locks
-- include: availability
-- include: sign
-- include: queue
-- include: due
-- include: view

local reply = {now_us}
for i = 1, count do
  view(reply, i, record_of(i), argument(i, 2))
end
return reply
