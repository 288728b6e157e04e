-- Adds slot i to the reply, as the one who gives this lock_key sees it.
local function view(reply, i, record, lock_key)
  local tag, at = 'found', #reply
  if not record then
    tag = redis.call('EXISTS', record_name(i)) == 1 and 'corrupt' or 'not_found'
  elseif unbookable(record) == 'corrupt' then
    tag = 'corrupt'
  end
  local key, until_ms = lock_in_the_way(i)
  reply[at + 1], reply[at + 2], reply[at + 3] = tag, record, until_ms or 0
  reply[at + 4] = obstacle(record, key, lock_key) and 0 or 1
end
