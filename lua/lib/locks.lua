-- What is asked of a slot, by its number in the call.
local function argument(i, position)
  return ARGV[HEAD + (i - 1) * STRIDE + position]
end

local function lock_name(i)
  return names[2 * i - 1]
end

local function record_name(i)
  return names[2 * i]
end

local function record_of(i)
  return values[2 * first[i]]
end

local function keep_record(i, record)
  values[2 * first[i]] = record
end

-- The lock_key that holds slot i; false if nothing does.
local function key_of(i)
  return values[2 * first[i] - 1]
end

local function token_of(i)
  return tonumber(tokens[first[i] + 1])
end

local function claim_on(i, lock_key, token)
  return claim(key_of(i), tokens[first[i] + 1], lock_key, token)
end

local function end_of(i)
  local at = first[i]
  local until_ms = tonumber(ends[at]) or tonumber(string.match(ends[at] or '', '%d+$'))
  if not until_ms then
    -- Another client set this key by hand: only Redis knows its end, and there may be none.
    local left_ms = redis.call('PTTL', lock_name(i))
    until_ms = left_ms >= 0 and now_ms + left_ms or 253402300799999
    ends[at] = until_ms
  end
  return until_ms
end

-- Slot i is nobody's from here on, or that of a turn in its line.
local function pass(i, turn)
  local at = first[i]
  values[2 * at - 1], tokens[at + 1] = turn and turn.key or false, turn and string.format('+%.0f', turn.token)
  ends[at] = turn and turn.until_ms
end

-- Tells of a lock that ended by its date, if nobody told of it yet: whatever takes the slot next must come after.
local function lapse(i)
  if token_of(i) and not key_of(i) and not lapsed[ids[i]] then
    lapsed[ids[i]] = true
    tell('expired', ids[i], record_of(i), string.format('%d', end_of(i)), string.format('%d', token_of(i)))
  end
end
