-- Bookings: their records, and the indexes that hold them in the order they were made: all, by slot, by resource.
-- A record is a line of fields, then slot_id, resource_id and metadata, a line each:
--   1<A|C: active or cancelled><K|E|N: took a lock, came after its lock's end, or neither> created updated
-- The leading 1 is the format's version; dates are in ms.
local created, by_slot, by_resource = KEYS[4], KEYS[5], KEYS[6]
-- What is no index, or no stream, must be found out before the first write.
redis.call('XLEN', KEYS[3])
for at = 4, 6 do
  redis.call('ZCARD', KEYS[at])
end

local function read_booking(text)
  local status, lock, created_ms, updated_ms, slot_id, resource_id, metadata =
    string.match(text, '^1([AC])([KEN]) (%d+) (%d+)\n([^\n]*)\n([^\n]*)\n(.*)$')
  return status and {
    status = status, lock = lock, created_ms = created_ms, updated_ms = updated_ms,
    slot_id = slot_id, resource_id = resource_id, metadata = metadata,
  }
end

local function write_booking(b)
  return table.concat({'1' .. b.status .. b.lock, b.created_ms, b.updated_ms}, ' ') .. '\n'
    .. table.concat({b.slot_id, b.resource_id, b.metadata}, '\n')
end

local function index_booking(id, b)
  redis.call('ZADD', created, b.created_ms, id)
  redis.call('ZADD', by_slot, 0, entry(b.slot_id, b.created_ms, id))
  redis.call('ZADD', by_resource, 0, entry(b.resource_id, b.created_ms, id))
end

local function unindex_booking(id, b)
  redis.call('ZREM', created, id)
  redis.call('ZREM', by_slot, entry(b.slot_id, b.created_ms, id))
  redis.call('ZREM', by_resource, entry(b.resource_id, b.created_ms, id))
end
