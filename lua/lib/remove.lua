-- Removes a slot and all that is kept of it.
local function remove(starts, resources, record, id, record_name, lock_name)
  redis.call('DEL', record_name, lock_name)
  redis.call('HDEL', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
  unindex(starts, resources, record, id)
end
