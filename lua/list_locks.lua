-- Guarantee: reads only. Lists the live locks in the order of their dates. A lock_key never leaves the server: its
-- hash tells two of them apart.
-- KEYS: locks, expiry, events
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, cursor, chunk
--   cursor is where the last call stopped, 0 at first
-- Reply: now_us, next_cursor, then per lock: slot_id, locked_until_ms, fencing_token, key_hash
--   next_cursor is 0 at the end
local locks, expiry = KEYS[1], KEYS[2]
local cursor, chunk = tonumber(ARGV[5]), tonumber(ARGV[6])
-- include: clock
-- include: naming

local found = redis.call('ZRANGEBYSCORE', expiry, now_ms, '+inf', 'WITHSCORES', 'LIMIT', cursor, chunk)
if #found == 0 then
  return {now_us, 0}
end
local ids, names = {}, {}
for at = 1, #found, 2 do
  ids[#ids + 1] = found[at]
  names[#names + 1] = lock_name_of(found[at])
end
local keys = redis.call('MGET', unpack(names))
local tokens = redis.call('HMGET', locks, unpack(ids))

local reply = {now_us, #ids == chunk and cursor + chunk or 0}
for i, id in ipairs(ids) do
  if keys[i] then
    local at = #reply
    reply[at + 1], reply[at + 2] = id, tonumber(found[2 * i])
    reply[at + 3], reply[at + 4] = tonumber(tokens[i]) or 0, string.sub(redis.sha1hex(keys[i]), 1, 8)
  end
end
return reply
