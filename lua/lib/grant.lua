-- Decides for every slot first, then writes for all: what `lock` and `extend` share. `claim(i, lock)` says what the
-- caller's claim on slot i is, given its live lock or false: 'locked' makes a lock, 'yours' prolongs it, and any
-- other tag refuses.
local function grant(claim)
  local max_lock_ms, scope, mode = tonumber(ARGV[1]), ARGV[2], ARGV[3]
  local last_token = tonumber(tokens[1]) or 0
  local foreign = foreign_locks()

  local function next_token()
    -- Above the clock too: a store that lost its data must not hand out old tokens again.
    last_token = math.max(last_token + 1, now_us)
    return last_token
  end

  local function decide(i, until_ms)
    local wrong_date = misdated(until_ms, max_lock_ms)
    if wrong_date then
      return wrong_date
    end
    local record = record_of(i)
    if record then
      local why = unlockable(record)
      if why then
        return why
      end
    elseif redis.call('EXISTS', record_name(i)) == 1 then
      return 'corrupt'
    elseif scope == 'registered' then
      return 'not_found'
    end
    if foreign[i] then
      return 'corrupt'
    end
    return claim(i, lock_of(i))
  end

  local reply = {now_us}
  local granted, prolonged, refused = {}, {}, false
  for i = 1, count do
    local until_ms = date(argument(i, 3))
    local tag = decide(i, until_ms)
    local lock, record = held[ids[i]], false
    if tag == 'locked' then
      lock = {key = argument(i, 2), until_ms = until_ms, token = next_token()}
      held[ids[i]] = lock
      granted[#granted + 1] = i
      record = record_of(i)
    elseif tag == 'yours' then
      lock.token = lock.token or next_token()
      lock.until_ms = math.max(lock.until_ms, until_ms)
      prolonged[#prolonged + 1] = i
      record = record_of(i)
    else
      refused = true
    end
    local at = #reply
    reply[at + 1], reply[at + 2] = tag, record
    reply[at + 3], reply[at + 4] = lock and lock.until_ms or 0, lock and lock.token or 0
  end

  if refused and mode == 'all' then
    for at = 2, #reply, 4 do
      if reply[at] == 'locked' or reply[at] == 'yours' then
        reply[at], reply[at + 1], reply[at + 2], reply[at + 3] = 'withheld', false, 0, 0
      end
    end
    return reply
  end
  if #granted + #prolonged == 0 then
    return reply
  end

  sweep(2 * count)
  local fields, dates = {'', string.format('%.0f', last_token)}, {}
  local function note(i)
    local lock = held[ids[i]]
    fields[#fields + 1], fields[#fields + 2] = ids[i], string.format('%.0f', lock.token)
    dates[#dates + 1], dates[#dates + 2] = string.format('%.0f', lock.until_ms), ids[i]
  end
  for _, i in ipairs(granted) do
    note(i)
    redis.call('SET', lock_name(i), argument(i, 2), 'NX', 'PXAT', dates[#dates - 1])
  end
  for _, i in ipairs(prolonged) do
    note(i)
    redis.call('PEXPIREAT', lock_name(i), dates[#dates - 1])
  end
  redis.call('HSET', locks, unpack(fields))
  redis.call('ZADD', expiry, unpack(dates))
  return reply
end
