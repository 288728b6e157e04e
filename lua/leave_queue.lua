-- Guarantee: a ticket leaves the line of its slot. If the slot was given to it and its owner has not come for it, the
-- next in line gets it in the same step. A lock that its owner has come for stays.
-- KEYS: locks, expiry, events, then per slot: record, then per slot: lock
-- ARGV: per slot: slot_id, lock_key, ticket
-- Reply: now_us, then per slot: tag
-- Tags: left, gone
local FIRST_KEY, HEAD, STRIDE = 4, 0, 3
-- include: clock
-- include: slots
-- include: events
-- include: state
-- include: claim
-- include: locks
-- include: availability
-- include: sign
-- include: queue
-- include: turns

local reply, removed, names_removed = {now_us}, {}, {}
for i = 1, count do
  local lock_key, ticket = argument(i, 2), argument(i, 3)
  local found = redis.pcall('HMGET', line_of(ids[i], lock_name(i)).tickets, ticket)
  local mine = not found.err and read_ticket(found[1])
  if mine and mine.key == lock_key then
    leave_line(ids[i], lock_name(i), ticket)
    if key_of(i) == lock_key and mine.token == token_of(i) then
      tell('unlocked', ids[i], record_of(i), nil, string.format('%d', mine.token))
      removed[#removed + 1], names_removed[#names_removed + 1] = ids[i], lock_name(i)
      pass(i, hand_over(ids[i], lock_name(i), record_of(i)))
    end
    reply[i + 1] = 'left'
  else
    reply[i + 1] = 'gone'
  end
end

if #removed > 0 then
  redis.call('ZREM', expiry, unpack(removed))
  publish()
  redis.call('HDEL', locks, unpack(removed))
  redis.call('DEL', unpack(names_removed))
end
write_lines()
return reply
