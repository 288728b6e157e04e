-- Guarantee: a lock is removed only by its own lock_key, and by its own fencing token where one is given, so that
-- a late unlock never ends a newer lock. A slot that is free already stays so. Only an operator's "force" compares
-- nothing. Where somebody waits in line, the slot is theirs in the same step.
-- KEYS: locks, expiry, events, then per slot: record, then per slot: lock
-- ARGV: mode, then per slot: slot_id, lock_key, fencing_token
--   mode is "owner" or "force"; an empty fencing_token stands for any
-- Reply: per slot: tag, record, locked_until_ms, available
-- Tags: unlocked, gone, taken
local FIRST_KEY, HEAD, STRIDE = 4, 1, 3
-- include: slots
-- include: state
-- include: events
-- include: availability
-- include: sign
local force = ARGV[1] == 'force'

-- Mostly each lock is its caller's, and nobody waits. Then nothing of `more` is needed; to make its functions would cost
-- such a call as much as all else it does. A fencing token comes without a plus sign: nobody waits where it is the same.
local plain = true
for i = 1, count do
  local at, had = HEAD + (i - 1) * STRIDE, tokens[i + 1]
  local lock_key, token = ARGV[at + 2], ARGV[at + 3]
  if values[2 * i - 1] ~= lock_key or first[i] ~= i or token ~= had and (token ~= '' or is_waited_for(had)) then
    plain = false
    break
  end
end
local more
if not plain then
  -- include: clock
  -- include: claim
  -- include: locks
  -- include: queue
  -- include: turns
  -- include: due
  more = {claim = claim, hand_over = hand_over, pass = pass, lock_in_the_way = lock_in_the_way, write_lines = write_lines}
end

local names_removed, removed, removed_count, unregistered = room_for(count), room_for(count), 0, {}
local reply = room_for(4 * count)
for i = 1, count do
  local argument_at, at, row = HEAD + (i - 1) * STRIDE, first[i], 4 * i - 4
  local lock_key, key, record, had = ARGV[argument_at + 2], values[2 * at - 1], values[2 * at], tokens[at + 1]
  local tag, until_ms = more and more.claim(key, had, lock_key, ARGV[argument_at + 3]) or 'yours', 0
  if tag == 'yours' or force and key then
    tag, key = 'unlocked', nil
    tell('unlocked', ids[i], record, nil, more and is_waited_for(had) and string.format('%d', had) or had)
    removed_count = removed_count + 1
    names_removed[removed_count], removed[removed_count] = names[2 * i - 1], ids[i]
    if not record then
      unregistered[#unregistered + 1] = ids[i]
    end
    if more then
      more.pass(i, is_waited_for(had) and more.hand_over(ids[i], names[2 * i - 1], record, tonumber(had)))
    end
  end
  if more then
    key, until_ms = more.lock_in_the_way(i)
  end
  reply[row + 1], reply[row + 2], reply[row + 3] = tag, record, until_ms or 0
  reply[row + 4] = obstacle(record, key, lock_key) and 0 or 1
end

if removed_count > 0 then
  -- If the shared keys are not what they should be, it ends here, before anything is written.
  -- A registered slot keeps its entry in `expiry` for its next lock: to take it out and put it in again would be a third
  -- of a pair's time where there are very many. What sweeps takes it out at its date.
  if #unregistered > 0 then
    redis.call('ZREM', expiry, unpack(unregistered))
  else
    redis.call('ZCARD', expiry)
  end
  publish()
  redis.call('HDEL', locks, unpack(removed, 1, removed_count))
  redis.call('DEL', unpack(names_removed, 1, removed_count))
  if more then
    more.write_lines()
  end
end
return reply
