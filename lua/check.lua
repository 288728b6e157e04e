-- Guarantee: reads only. Says of each slot whether the caller's lock_key (and fencing token, where one is given)
-- holds it now.
-- KEYS: locks, expiry, events, then per slot: record, then per slot: lock
-- ARGV: per slot: slot_id, lock_key, fencing_token
--   an empty fencing_token stands for any
-- Reply: now_us, then per slot: tag, record, locked_until_ms, fencing_token
-- Tags: yours, gone, taken
local FIRST_KEY, HEAD, STRIDE = 4, 0, 3
-- include: clock
-- include: slots
-- include: events
-- include: state
-- include: claim
-- include: locks

local reply = {now_us}
for i = 1, count do
  local tag, at = claim_on(i, argument(i, 2), argument(i, 3)), #reply
  local yours = tag == 'yours'
  reply[at + 1], reply[at + 2] = tag, yours and record_of(i)
  reply[at + 3], reply[at + 4] = yours and end_of(i) or 0, yours and token_of(i) or 0
end
return reply
