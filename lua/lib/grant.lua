-- What `lock` and `extend` share: for every slot it is decided first, then all is written. `claim(i)` says what the
-- caller's claim on slot i is: 'locked' makes a lock, 'yours' prolongs it, and any other tag refuses.
local max_lock_ms, scope, mode = tonumber(ARGV[1]), ARGV[2], ARGV[3]

-- MGET shows a key of another type as missing, EXISTS counts it. A foreign key must fail its own slot, and that before
-- anything is written; each is looked at only when the counts differ.
local seen = 0
for at = 1, 2 * count do
  seen = seen + (values[at] and 1 or 0)
end
local some_foreign = redis.call('EXISTS', unpack(KEYS, FIRST_KEY)) > seen

local function is_foreign(i)
  return not values[2 * i - 1] and redis.call('EXISTS', lock_name(i)) == 1
    or not values[2 * i] and redis.call('EXISTS', record_name(i)) == 1
end

local function decide(claim, i, until_ms)
  local record = record_of(i)
  if until_ms <= now_ms then
    return 'past'
  elseif until_ms - now_ms > max_lock_ms then
    return 'too_long'
  elseif some_foreign and is_foreign(i) then
    return 'corrupt'
  elseif record then
    return unlockable(record) or claim(i)
  end
  return scope == 'registered' and 'not_found' or claim(i)
end

local function grant(claim)
  local last_token = tonumber(redis.call('HGET', locks, '')) or 0
  local reply, granted, prolonged, refused = {now_us}, {}, {}, false
  for i = 1, count do
    -- A date in ms, or with a plus sign a duration in ms that is counted from now.
    local given = argument(i, 3)
    local until_ms = tonumber(given) + (string.byte(given) == 43 and now_ms or 0)
    local tag, at = decide(claim, i, until_ms), #reply
    if tag == 'locked' or tag == 'yours' then
      if tag == 'locked' then
        held[ids[i]] = {key = argument(i, 2), until_ms = until_ms}
        granted[#granted + 1] = i
      else
        prolonged[#prolonged + 1] = i
      end
      local lock = lock_of(i)
      if tag == 'locked' or not token_of(i) then
        -- Above the clock too: a store that lost its data must not hand out old tokens again.
        last_token = math.max(last_token + 1, now_us)
        lock.token = last_token
      end
      lock.until_ms = math.max(end_of(i), until_ms)
      reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = tag, record_of(i), lock.until_ms, lock.token
    else
      refused = true
      reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = tag, false, tag == 'taken' and end_of(i) or 0, 0
    end
  end

  if refused and mode == 'all' then
    for at = 2, #reply, 4 do
      if reply[at] == 'locked' or reply[at] == 'yours' then
        reply[at], reply[at + 1], reply[at + 2], reply[at + 3] = 'withheld', false, 0, 0
      end
    end
    return reply
  elseif #granted + #prolonged == 0 then
    return reply
  end

  sweep(2 * count)
  -- redis.call writes a number in full; only tostring and .. would round a token.
  local fields, dates = {'', last_token}, {}
  local function note(i)
    local lock = held[ids[i]]
    fields[#fields + 1], fields[#fields + 2] = ids[i], lock.token
    dates[#dates + 1], dates[#dates + 2] = lock.until_ms, ids[i]
    return lock.until_ms
  end
  for _, i in ipairs(granted) do
    redis.call('SET', lock_name(i), argument(i, 2), 'NX', 'PXAT', note(i))
  end
  for _, i in ipairs(prolonged) do
    redis.call('PEXPIREAT', lock_name(i), note(i))
  end
  redis.call('HSET', locks, unpack(fields))
  redis.call('ZADD', expiry, unpack(dates))
  return reply
end
