-- What `lock` and `extend` are: for every slot it is decided first, then all is written. MAKES says whether a slot
-- that nothing holds gets a new lock, FAIR whether who finds it taken joins the line.
local format = string.format  -- a global is looked up by its name each time
local max_lock_ms, scope, mode = tonumber(ARGV[5]), ARGV[6], ARGV[7]

-- The date of an `until` in ms, and the quota after it if there is one.
local function read_until(given)
  local sign, ms, quota = string.match(given, '^(%+?)(%-?%d+) ?(.*)$')
  return sign == '+' and now_ms + ms or tonumber(ms), quota ~= '' and quota or nil
end

-- Each call that adds n locks sweeps up to 2n that ended, so what is left behind can't pile up where no sweeper runs.
-- Nothing waits for it: a lock is live as long as its key is.
local ended = redis.call('ZRANGEBYSCORE', expiry, '-inf', now_ms - 1, 'WITHSCORES', 'LIMIT', 0, 2 * count)

-- Mostly all slots are free, and nothing ended, waits or is limited. Then nothing of `more` is needed; to make its
-- functions would cost such a call as much as all else it does.
local plain, missing, missing_count, given_before = #ended == 0 and MAKES and not FAIR, room_for(count), 0, nil
for i = 1, count do
  local given = ARGV[HEAD + (i - 1) * STRIDE + 3]
  if values[2 * i - 1] then
    plain = false
  else
    missing_count = missing_count + 1
    missing[missing_count] = names[2 * i - 1]
  end
  if not values[2 * i] then
    missing_count = missing_count + 1
    missing[missing_count] = names[2 * i]
  end
  if tokens[i + 1] or first[i] ~= i or given ~= given_before and string.find(given, ' ', 1, true) then
    plain = false
  end
  given_before = given
end
local more
if not plain then
  -- include: naming
  -- include: claim
  -- include: locks
  -- include: sign
  -- include: queue
  -- include: turns
  -- include: join
  -- include: lapsed
  -- include: quota
  more = {
    claim_on = claim_on, end_of = end_of, is_waited_for = is_waited_for, next_in_line = next_in_line,
    leave_line = leave_line, join = join, write_lines = write_lines, lapse = lapse, lapsed_locks = lapsed_locks,
    forget = forget, new_quotas = new_quotas,
  }
end

-- MGET shows a key of another type as missing, EXISTS counts it. A foreign key must fail its own slot, and that before
-- anything is written; each is looked at only if there is one.
local some_foreign = missing_count > 0 and redis.call('EXISTS', unpack(missing, 1, missing_count)) > 0

local reply, refused, quotas = room_for(1 + 4 * count), false, nil
reply[1] = now_us
local granted, granted_count, prolonged, joining = room_for(count), 0, {}, {}
local fields, dates, written = room_for(2 + 2 * count), room_for(2 * count), 0
local given, date_ms, date_text, quota, dates_given = nil, nil, nil, nil, 0
for i = 1, count do
  local argument_at, at, row = HEAD + (i - 1) * STRIDE, first[i], 4 * i - 3
  local id, lock_key = ids[i], ARGV[argument_at + 2]
  local key, record, had = values[2 * at - 1], values[2 * at], tokens[at + 1]
  local tag, lockable, free_at, turn

  -- A date in ms, or with a plus sign a duration in ms that is counted from now. Mostly it is that of the slot before.
  if given ~= ARGV[argument_at + 3] then
    given, dates_given = ARGV[argument_at + 3], dates_given + 1
    date_ms, quota = read_until(given)
    date_text = format('%d', date_ms)
  end
  local until_ms = date_ms

  if until_ms <= now_ms then
    tag = 'past'
  elseif until_ms - now_ms > max_lock_ms then
    tag = 'too_long'
  elseif some_foreign and (not key and redis.call('EXISTS', names[2 * i - 1]) == 1
    or not record and redis.call('EXISTS', names[2 * i]) == 1) then
    tag = 'corrupt'
  elseif record then
    tag, lockable = unbookable(record)
    tag = lockable == 'N' and 'not_lockable' or tag
  elseif scope == 'registered' then
    tag = 'not_found'
  end
  if not tag then
    if key then
      tag = more.claim_on(i, lock_key, MAKES and '' or ARGV[argument_at + 4])
    else
      tag = MAKES and 'locked' or 'gone'
    end
    if MAKES and had and tag ~= 'taken' and more.is_waited_for(had) then
      -- The slot was given to the first in line, who comes for it here; or it is theirs now that the lock has lapsed.
      local head = more.next_in_line(id, names[2 * i - 1])
      if not key and head and head.key ~= lock_key then
        tag, free_at = 'taken', head.until_ms
      elseif head and (not key or head.token == tonumber(had)) then
        tag, turn = 'locked', head
      end
    end
    if quota then
      quotas = quotas or more.new_quotas()
      local first_end
      tag, first_end = quotas.count_in(quota, tag, until_ms)
      free_at = first_end or free_at
    end
  end

  if tag == 'locked' or tag == 'yours' then
    if key then
      prolonged[#prolonged + 1] = i
    elseif had then
      more.lapse(i)
    end
    if tag == 'locked' then
      granted_count = granted_count + 1
      granted[granted_count] = i
    end
    if turn then
      more.leave_line(id, names[2 * i - 1], turn.ticket)
    end
    local fencing_token = key and tonumber(had)
    if not fencing_token then
      -- Above the clock too: a store that lost its data must not hand out old tokens again.
      last_token = last_token < now_us and now_us or last_token + 1
      fencing_token = last_token
    end
    local before_ms = tag == 'yours' and more.end_of(i)
    if before_ms and before_ms > until_ms then
      until_ms = before_ms
    end
    local until_text = until_ms == date_ms and date_text or format('%d', until_ms)
    local token_text = format('%d', fencing_token)
    if until_ms ~= before_ms then
      tell(key and 'extended' or 'locked', id, record, until_text, token_text)
    end
    if turn or key and more.is_waited_for(had) then
      token_text = '+' .. token_text
    end
    values[2 * at - 1], tokens[at + 1], ends[at] = lock_key, token_text, until_text
    fields[written + 3], fields[written + 4] = id, token_text .. ' ' .. until_text
    dates[written + 1], dates[written + 2] = until_text, id
    written = written + 2
    reply[row + 1], reply[row + 2], reply[row + 3], reply[row + 4] = tag, record, until_ms, fencing_token
  else
    refused = true
    if FAIR and tag == 'taken' then
      joining[#joining + 1] = i
      if key and not tonumber(had) then
        -- Another client set this key by hand: it needs a token that can say that somebody waits.
        last_token = math.max(last_token + 1, now_us)
        tokens[at + 1] = last_token
        fields[written + 3], fields[written + 4] = id, format('%d %d', last_token, more.end_of(i))
        dates[written + 1], dates[written + 2] = more.end_of(i), id
        written = written + 2
      end
    end
    reply[row + 1], reply[row + 2] = tag, false
    reply[row + 3], reply[row + 4] = free_at or tag == 'taken' and more.end_of(i) or 0, 0
  end
end

if quotas then
  quotas.forget_ended()
end
if refused and mode == 'all' then
  for row = 2, #reply, 4 do
    if reply[row] == 'locked' or reply[row] == 'yours' then
      reply[row], reply[row + 1], reply[row + 2], reply[row + 3] = 'withheld', false, 0, 0
    end
  end
  return reply
end

if written > 0 then
  local gone, early
  if #ended > 0 then
    gone, early = more.lapsed_locks(ended)
  end
  publish()  -- the first to be written: it may find something else in its place
  if gone then
    more.forget(gone, early)
  end

  -- Where many are locked until one date, a single command for all takes half as long. Not every server has it (Valkey 9.1,
  -- Redis 8.4) nor may every user call it: that is asked before, for an error here would leave all this half done.
  local set_at_once = false
  if granted_count > 2 and dates_given == 1 then
    local known, allowed = pcall(redis.acl_check_cmd, 'MSETEX', '1', names[1], '')
    if known and allowed then
      local words, at = room_for(2 * granted_count + 4), 1
      words[1] = granted_count
      for n = 1, granted_count do
        local i = granted[n]
        words[at + 1], words[at + 2] = names[2 * i - 1], values[2 * first[i] - 1]
        at = at + 2
      end
      words[at + 1], words[at + 2], words[at + 3] = 'NX', 'PXAT', date_text
      -- It sets all or none: none if one of them stands already, as that of a slot given to the first in line does.
      set_at_once = redis.call('MSETEX', unpack(words)) == 1
    end
  end
  -- redis.call writes a number in full; only tostring and .. would round a token.
  if not set_at_once then
    for n = 1, granted_count do
      local i = granted[n]
      redis.call('SET', names[2 * i - 1], values[2 * first[i] - 1], 'NX', 'PXAT', ends[first[i]])
    end
  end
  for _, i in ipairs(prolonged) do
    redis.call('PEXPIREAT', names[2 * i - 1], ends[first[i]])
  end
  fields[1], fields[2] = '', last_token
  redis.call('HSET', locks, unpack(fields, 1, written + 2))
  -- An entry that is sooner stays: what sweeps finds it early, and moves it then.
  redis.call('ZADD', expiry, 'LT', unpack(dates, 1, written))
  if quotas then
    quotas.write(granted, granted_count)
  end
end
if more then
  more.write_lines()
end
if FAIR then
  for _, i in ipairs(more.join(joining)) do
    reply[4 * i - 2] = 'corrupt'
  end
end
return reply
