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
-- include: state
-- include: sign
-- include: events
-- include: availability
-- What is needed where somebody waits, or where a lock stays. The hot path makes do without: to make functions costs it
-- more than to run.
local made
local function seldom()
  if not made then
    -- include: locks
    -- include: queue
    -- include: turns
    -- include: due
    made = {hand_over = hand_over, pass = pass, lock_in_the_way = lock_in_the_way, write_lines = write_lines}
  end
  return made
end

local force = ARGV[1] == 'force'

local reply, names_removed, removed = {now_us}, {}, {}
for i = 1, count do
  local lock_key, at, row = argument(i, 2), first[i], #reply
  local tag, record, token = claim_on(i, lock_key, argument(i, 3)), values[2 * at], tokens[at + 1]
  if tag == 'yours' or force and values[2 * at - 1] then
    tag = 'unlocked'
    tell('unlocked', ids[i], record, 0, tonumber(token))
    names_removed[#names_removed + 1], removed[#removed + 1] = names[2 * i - 1], ids[i]
    if is_waited_for(token) then
      seldom().pass(i, seldom().hand_over(ids[i], names[2 * i - 1], record, tonumber(token)))
    else
      values[2 * at - 1], tokens[at + 1] = false, false
    end
  end
  local key, until_ms
  if values[2 * at - 1] or tokens[at + 1] then
    key, until_ms = seldom().lock_in_the_way(i)
  end
  reply[row + 1], reply[row + 2], reply[row + 3] = tag, record, until_ms or 0
  reply[row + 4] = obstacle(record, key, lock_key) and 0 or 1
end

if #removed > 0 then
  -- If the shared keys are not what they should be, it ends here, before anything is written.
  redis.call('ZREM', expiry, unpack(removed))
  publish()
  redis.call('HDEL', locks, unpack(removed))
  redis.call('DEL', unpack(names_removed))
  if made then
    made.write_lines()
  end
end
return reply
