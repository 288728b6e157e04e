-- What `lock` and `extend` are: for every slot it is decided first, then all is written. MAKES says whether a slot
-- that nothing holds gets a new lock, FAIR whether who finds it taken joins the line. Straight on, without functions of its own:
-- this is the hot path.
local max_lock_ms, scope, mode = tonumber(ARGV[5]), ARGV[6], ARGV[7]
read_tokens()

-- MGET shows a key of another type as missing, EXISTS counts it. A foreign key must fail its own slot, and that before
-- anything is written; each is looked at only when the counts differ.
local seen = 0
for at = 1, 2 * count do
  seen = values[at] and seen + 1 or seen
end
local some_foreign = redis.call('EXISTS', unpack(names)) > seen

local reply, refused, quotas = {now_us}, false, nil
local granted, prolonged, joining, fields, dates = {}, {}, {}, {'', 0}, {}
for i = 1, count do
  local argument = HEAD + (i - 1) * STRIDE
  local lock_key, given, token, quota = ARGV[argument + 2], ARGV[argument + 3], ARGV[argument + 4], ''
  if MAKES then
    token, quota = '', token
  end
  local record, lock, tag, lockable, free_at = records[ids[i]], lock_of(i), nil, nil, nil
  local turn = nil

  -- A date in ms, or with a plus sign a duration in ms that is counted from now.
  local until_ms = tonumber(given)
  if string.byte(given) == 43 then
    until_ms = now_ms + until_ms
  end

  if until_ms <= now_ms then
    tag = 'past'
  elseif until_ms - now_ms > max_lock_ms then
    tag = 'too_long'
  elseif some_foreign and is_foreign(i) then
    tag = 'corrupt'
  elseif record then
    tag, lockable = unbookable(record)
    tag = lockable == 'N' and 'not_lockable' or tag
  elseif scope == 'registered' then
    tag = 'not_found'
  end
  if not tag then
    if not lock then
      tag = MAKES and 'locked' or 'gone'
    else
      tag = claim_on(i, lock_key, token)
    end
    if MAKES and tag ~= 'taken' and is_waited_for(tokens[i + 1]) then
      -- The slot was given to the first in line, who comes for it here; or it is theirs now that the lock has lapsed.
      local first = next_in_line(ids[i], lock_name(i))
      if not lock and first and first.key ~= lock_key then
        tag, free_at = 'taken', first.until_ms
      elseif first and (not lock or first.token == token_of(i)) then
        tag, turn = 'locked', first
      end
    end
    if quota ~= '' then  -- never in `extend`, which does not have what counts
      quotas = quotas or new_quotas()
      local first_end
      tag, first_end = quotas.count_in(quota, tag, until_ms)
      free_at = first_end or free_at
    end
  end

  local at = #reply
  if tag == 'locked' or tag == 'yours' then
    local is_new = not lock
    if is_new then
      lock = {key = lock_key, until_ms = until_ms}
      held[ids[i]] = lock
      lapse(i)
    else
      prolonged[#prolonged + 1] = i
    end
    if tag == 'locked' then
      granted[#granted + 1] = i
    end
    if turn then
      leave_line(ids[i], lock_name(i), turn.ticket)
    end
    if is_new or not token_of(i) then
      -- Above the clock too: a store that lost its data must not hand out old tokens again.
      last_token = math.max(last_token + 1, now_us)
      lock.token = last_token
    end
    local before_ms = tag == 'yours' and end_of(i)
    lock.until_ms = math.max(before_ms or 0, until_ms)
    if lock.until_ms ~= before_ms then
      tell(is_new and 'locked' or 'extended', ids[i], record, lock.until_ms, lock.token)
    end
    local in_line = turn or not is_new and is_waited_for(tokens[i + 1])
    fields[#fields + 1], fields[#fields + 2] = ids[i], in_line and string.format('+%.0f', lock.token) or lock.token
    dates[#dates + 1], dates[#dates + 2] = lock.until_ms, ids[i]
    reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = tag, record, lock.until_ms, lock.token
  else
    refused = true
    if FAIR and tag == 'taken' then
      joining[#joining + 1] = i
      if lock and not token_of(i) then
        -- Another client set this key by hand: it needs a token that can say that somebody waits.
        last_token = math.max(last_token + 1, now_us)
        lock.token = last_token
        fields[#fields + 1], fields[#fields + 2] = ids[i], lock.token
        dates[#dates + 1], dates[#dates + 2] = end_of(i), ids[i]
      end
    end
    reply[at + 1], reply[at + 2], reply[at + 3] = tag, false, free_at or tag == 'taken' and end_of(i) or 0
    reply[at + 4] = 0
  end
end

if quotas then
  quotas.forget_ended()
end
if refused and mode == 'all' then
  for at = 2, #reply, 4 do
    if reply[at] == 'locked' or reply[at] == 'yours' then
      reply[at], reply[at + 1], reply[at + 2], reply[at + 3] = 'withheld', false, 0, 0
    end
  end
  return reply
end

if #dates > 0 then
  -- Each call that adds n locks sweeps up to 2n that ended, so what is left behind can't pile up where no sweeper runs.
  -- Nothing waits for it: a lock is live as long as its key is.
  local gone = lapsed_locks(2 * count)
  publish()  -- the first to be written: it may find something else in its place
  forget(gone)

  -- redis.call writes a number in full; only tostring and .. would round a token.
  for _, i in ipairs(granted) do
    redis.call('SET', lock_name(i), held[ids[i]].key, 'NX', 'PXAT', held[ids[i]].until_ms)
  end
  for _, i in ipairs(prolonged) do
    redis.call('PEXPIREAT', lock_name(i), held[ids[i]].until_ms)
  end
  fields[2] = last_token
  redis.call('HSET', locks, unpack(fields))
  redis.call('ZADD', expiry, unpack(dates))
  if quotas then
    quotas.write(granted)
  end
end
write_lines()
if FAIR then
  for _, i in ipairs(join(joining)) do
    reply[4 * i - 2] = 'corrupt'
  end
end
return reply
