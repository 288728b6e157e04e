-- Removes slots with all that is kept of them, bookings that were cancelled included. A call removes so many of those,
-- and the next goes on. What is written to must be what it should be before the first write.
local starts, resources = KEYS[7], KEYS[8]
redis.call('HLEN', KEYS[1])
for _, at in ipairs({2, 7, 8}) do
  redis.call('ZCARD', KEYS[at])
end
local budget = 512

local function remove_bookings(id, record)
  local entries = redis.call('ZRANGEBYLEX', by_slot, '[' .. id .. '\n', '(' .. id .. '\11', 'LIMIT', 0, budget)
  for _, text in ipairs(entries) do
    -- What a booking says is not needed: its record may be lost, or none of ours.
    local booking_id = id_in(text)
    redis.call('ZREM', created, booking_id)
    redis.call('ZREM', by_slot, text)
    redis.call('ZREM', by_resource, record.resource_id .. string.sub(text, #id + 1))
    redis.call('DEL', booking_name_of(booking_id))
  end
  budget = budget - #entries
  record.cancelled = string.format('%d', math.max(0, record.cancelled - #entries))
  redis.call('SET', record_name_of(id), write_record(record))
end

-- Returns whether the slot is gone: if not, this call has done enough, and the next must go on.
local function remove(id, record)
  if record.cancelled ~= '0' then
    remove_bookings(id, record)
  end
  if budget <= 0 then
    return false
  end
  local token, until_ms = string.match(redis.call('HGET', KEYS[1], id) or '', HELD)
  if token and redis.call('EXISTS', lock_name_of(id)) == 0 then
    tell('expired', id, write_record(record), until_ms, string.format('%d', token))
  end
  tell('slot_deleted', id, write_record(record))
  local line = line_of(id, lock_name_of(id))
  redis.call('DEL', record_name_of(id), lock_name_of(id), line.queue, line.tickets)
  redis.call('HDEL', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
  unindex(starts, resources, record, id)
  return true
end
