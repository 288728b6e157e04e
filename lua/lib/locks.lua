-- The locks and records of slots, read in a fixed number of commands whatever their number. `ids` says which slots,
-- `names` the keys of lock and record of each.
local locks, expiry = KEYS[1], KEYS[2]
local values = #names > 0 and redis.call('MGET', unpack(names)) or {}

-- By a slot's id and not by its place: callers may name one slot twice in a call, and the later must see what the
-- earlier did. The same goes for `held` below.
local records = {}
for i, id in ipairs(ids) do
  records[id] = values[2 * i]
end

local function lock_name(i)
  return names[2 * i - 1]
end

local function record_name(i)
  return names[2 * i]
end

local function is_foreign(i)
  return not values[2 * i - 1] and redis.call('EXISTS', lock_name(i)) == 1
    or not values[2 * i] and redis.call('EXISTS', record_name(i)) == 1
end

-- What holds a slot; false where nothing does.
local held = {}

local function lock_of(i)
  local lock = held[ids[i]]
  if lock == nil then
    local key = values[2 * i - 1]
    lock = key and {key = key}
    held[ids[i]] = lock
  end
  return lock
end

-- A lock's fencing token and its end are read where somebody asks, and then for all slots at once.
local tokens, ends, last_token

-- The field without a name is the last token that was given out.
local function read_tokens()
  if not tokens then
    tokens = redis.call('HMGET', locks, '', unpack(ids))
    last_token = tonumber(tokens[1]) or 0
  end
end

local function token_of(i)
  local lock = lock_of(i)
  if not lock.token then
    read_tokens()
    lock.token = tonumber(tokens[i + 1])
  end
  return lock.token
end

local function read_ends()
  ends = ends or redis.call('ZMSCORE', expiry, unpack(ids))
end

local function end_of(i)
  local lock = lock_of(i)
  if not lock.until_ms then
    read_ends()
    lock.until_ms = tonumber(ends[i])
    if not lock.until_ms then
      -- Another client set this key by hand: only Redis knows its end, and there may be none.
      local left_ms = redis.call('PTTL', lock_name(i))
      lock.until_ms = left_ms >= 0 and now_ms + left_ms or 253402300799999
    end
  end
  return lock.until_ms
end

-- Tells of a lock that ended by its date, if nobody told of it yet: whatever takes the slot next must come after.
local lapsed = {}
local function lapse(i)
  read_tokens()
  if tokens[i + 1] and not values[2 * i - 1] and not lapsed[ids[i]] then
    lapsed[ids[i]] = true
    read_ends()
    tell('expired', ids[i], records[ids[i]], tonumber(ends[i]), tonumber(tokens[i + 1]))
  end
end

-- What a caller with this lock_key, and this fencing token if it gives one, has to do with the lock of slot i. A token
-- that differs names an earlier lock of the same key: that one is gone.
local function claim_on(i, lock_key, token)
  local lock = lock_of(i)
  if not lock then
    return 'gone'
  elseif lock.key ~= lock_key then
    return 'taken'
  end
  return (token == '' or tonumber(token) == token_of(i)) and 'yours' or 'gone'
end
