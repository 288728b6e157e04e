-- Takes what ZRANGEBYSCORE found in `expiry` with a date that passed, slots and dates, the first at the head. An entry is
-- never later than the end of its slot's lock, but may be sooner: it may be of an earlier lock, or from before an extend.
-- Locks that ended and were not told of yet are told of here; that is the only place where a lock's end by its date is
-- seen, but for `lapse`, so each is told once. Where somebody waits in line, the slot is theirs next.
-- Returns what is to be forgotten, the entries that are early, with their dates to be, and how many locks were told of.
local function lapsed_locks(found)
  local gone, early, due, record_names, told_of = {}, {}, {}, {}, 0
  if #found == 0 then
    return gone, early, told_of
  end
  local ids, first_early = {}, math.huge
  for at = 1, #found, 2 do
    ids[#ids + 1] = found[at]
  end
  for i, held in ipairs(redis.call('HMGET', locks, unpack(ids))) do
    local token, until_ms = string.match(held or '', HELD)
    until_ms = tonumber(until_ms)
    if not token then
      gone[#gone + 1] = ids[i]
    elseif until_ms > tonumber(found[2 * i]) then
      early[#early + 1], early[#early + 2] = until_ms, ids[i]
      first_early = math.min(first_early, until_ms)
    else
      due[#due + 1] = {id = ids[i], token = token, until_ms = until_ms}
      record_names[#due] = record_name_of(ids[i])
    end
  end
  local records = #due > 0 and redis.call('MGET', unpack(record_names))
  for i, lock in ipairs(due) do
    if lock.until_ms > first_early then
      break  -- what is early ended before it, perhaps; that is told of first, when this is looked at again
    end
    gone[#gone + 1] = lock.id
    if not lapsed[lock.id] then
      told_of = told_of + 1
      tell('expired', lock.id, records[i], string.format('%d', lock.until_ms), string.format('%d', lock.token))
      if is_waited_for(lock.token) then
        hand_over(lock.id, lock_name_of(lock.id), records[i], tonumber(lock.token))
      end
    end
  end
  return gone, early, told_of
end

local function forget(gone, early)
  if #gone > 0 then
    redis.call('ZREM', expiry, unpack(gone))
    redis.call('HDEL', locks, unpack(gone))
  end
  if #early > 0 then
    redis.call('ZADD', expiry, unpack(early))
  end
end
