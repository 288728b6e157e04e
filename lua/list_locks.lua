-- Guarantee: reads only. Calls that follow each other list each lock that lives from the first to the last of them, some
-- perhaps twice. A lock_key never leaves the server: its hash tells two of them apart.
-- KEYS: locks, expiry, events
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, cursor, chunk
--   cursor is where the last call stopped, 0 at first; chunk is about how many locks to look at
-- Reply: now_us, next_cursor, then per lock: slot_id, locked_until_ms, fencing_token, key_hash
--   next_cursor is 0 at the end
-- A hash that is stored in one piece is given in one piece, whatever its size.
local MOST = 1000
-- include: clock
-- include: naming
-- include: held

local scan = redis.call('HSCAN', KEYS[1], ARGV[5], 'COUNT', ARGV[6])
local reply, found = {now_us, scan[1]}, scan[2]
for from = 1, #found, 2 * MOST do
  local names, to = {}, math.min(from + 2 * MOST - 1, #found)
  for at = from, to, 2 do
    names[#names + 1] = lock_name_of(found[at])
  end
  local keys = redis.call('MGET', unpack(names))
  for at = from, to, 2 do
    local key, token, until_ms = keys[(at - from) / 2 + 1], string.match(found[at + 1], HELD)
    if key and token then
      local last = #reply
      reply[last + 1], reply[last + 2], reply[last + 3] = found[at], tonumber(until_ms), tonumber(token)
      reply[last + 4] = string.sub(redis.sha1hex(key), 1, 8)
    end
  end
end
return reply
