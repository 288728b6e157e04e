-- The indexes of the slots: `starts` holds ids by their start, `resources` entries by resource, then start.
local function index(starts, resources, record, id)
  redis.call('ZADD', starts, record.start_ms, id)
  redis.call('ZADD', resources, 0, entry(record.resource_id, record.start_ms, id))
end

local function unindex(starts, resources, record, id)
  redis.call('ZREM', starts, id)
  redis.call('ZREM', resources, entry(record.resource_id, record.start_ms, id))
end
