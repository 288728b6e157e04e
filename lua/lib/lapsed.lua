-- Takes what ZRANGEBYSCORE found in `expiry` that ended by its date, slots and dates, the one that ended first at the
-- head. Those that were not told of yet are told of here, and all are returned to be forgotten; that is the only place
-- where a lock's end by its date is seen, but for `lapse`, so each is told once. Where somebody waits in line, the slot is
-- theirs next.
local function lapsed_locks(found)
  local gone, lock_names, record_names = {}, {}, {}
  for at = 1, #found, 2 do
    local i = (at + 1) / 2
    gone[i], lock_names[i], record_names[i] = found[at], lock_name_of(found[at]), record_name_of(found[at])
  end
  if #gone == 0 then
    return gone
  end
  local gone_tokens = redis.call('HMGET', locks, unpack(gone))
  local gone_records = redis.call('MGET', unpack(record_names))
  for i, id in ipairs(gone) do
    if gone_tokens[i] and not lapsed[id] then
      tell('expired', id, gone_records[i], tonumber(found[2 * i]), tonumber(gone_tokens[i]))
      if is_waited_for(gone_tokens[i]) then
        hand_over(id, lock_names[i], gone_records[i], tonumber(gone_tokens[i]))
      end
    end
  end
  return gone
end

local function forget(gone)
  if #gone > 0 then
    redis.call('ZREM', expiry, unpack(gone))
    redis.call('HDEL', locks, unpack(gone))
  end
end
