-- The indexes of the slots: `starts` holds ids by their start, `resources` holds them by resource, then start.
-- No id has control characters, so a line feed separates the parts of a member; 15 digits from the year 1 on
-- make the order of texts that of dates.
local function start_part(start_ms)
  return string.format('%015.0f', start_ms + 62135596800000)
end

local function member(resource_id, start_ms, id)
  return resource_id .. '\n' .. start_part(start_ms) .. '\n' .. id
end

local function index(starts, resources, record, id)
  redis.call('ZADD', starts, record.start_ms, id)
  redis.call('ZADD', resources, 0, member(record.resource_id, record.start_ms, id))
end

local function unindex(starts, resources, record, id)
  redis.call('ZREM', starts, id)
  redis.call('ZREM', resources, member(record.resource_id, record.start_ms, id))
end
