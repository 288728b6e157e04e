-- Removes a slot and all that is kept of it. The shared keys must be what they should be before the first write.
redis.call('HLEN', KEYS[1])
for i = 2, 4 do
  redis.call('ZCARD', KEYS[i])
end

local function remove(starts, resources, record, id, record_name, lock_name)
  redis.call('DEL', record_name, lock_name)
  redis.call('HDEL', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
  unindex(starts, resources, record, id)
end
