-- Guarantee: a lock is removed only by its own lock_key, and by its own fencing token where one is given, so that
-- a late unlock never ends a newer lock. A slot that is free already stays so. Only an operator's "force" compares
-- nothing. Where somebody waits in line, the slot is theirs in the same step.
-- KEYS: locks, expiry, events, then per slot: lock, record
-- ARGV: mode, then per slot: slot_id, lock_key, fencing_token
--   mode is "owner" or "force"; an empty fencing_token stands for any
-- Reply: now_us, then per slot: tag, record, locked_until_ms, available
-- Tags: unlocked, gone, taken
local FIRST_KEY, HEAD, STRIDE = 4, 1, 3
-- include: clock
-- include: slots
-- include: events
-- include: locks
-- include: availability
-- include: queue
-- include: turns
-- include: due
local force = ARGV[1] == 'force'

local reply = {now_us}
local names, removed = {}, {}
for i = 1, count do
  local lock_key = argument(i, 2)
  local tag, at = claim_on(i, lock_key, argument(i, 3)), #reply
  if tag == 'yours' or force and lock_of(i) then
    tag = 'unlocked'
    -- If the shared keys are not what they should be, it ends here, before anything is written.
    tell('unlocked', ids[i], records[ids[i]], 0, token_of(i))
    names[#names + 1], removed[#removed + 1] = lock_name(i), ids[i]
    local had_it = token_of(i)
    held[ids[i]] = is_waited_for(tokens[i + 1]) and hand_over(ids[i], lock_name(i), records[ids[i]], had_it) or false
  end
  local lock = lock_in_the_way(i)
  reply[at + 1], reply[at + 2] = tag, records[ids[i]]
  reply[at + 3] = lock and (lock.until_ms or end_of(i)) or 0
  reply[at + 4] = available(records[ids[i]], lock, lock_key)
end

if #removed > 0 then
  redis.call('ZREM', expiry, unpack(removed))
  publish()
  redis.call('HDEL', locks, unpack(removed))
  redis.call('DEL', unpack(names))
  write_lines()
end
return reply
