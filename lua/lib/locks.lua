-- The slots of this call and their locks, read in a fixed number of commands whatever their number.
-- The script says where they stand: the first slot's KEYS, the ARGV before the first slot, the ARGV of each.
local locks, expiry = KEYS[1], KEYS[2]
local count = (#KEYS - FIRST_KEY + 1) / 2
local values = redis.call('MGET', unpack(KEYS, FIRST_KEY))

local ids = {}
for i = 1, count do
  ids[i] = ARGV[HEAD + (i - 1) * STRIDE + 1]
end

local function argument(i, position)
  return ARGV[HEAD + (i - 1) * STRIDE + position]
end

local function lock_name(i)
  return KEYS[FIRST_KEY + 2 * (i - 1)]
end

local function record_name(i)
  return KEYS[FIRST_KEY + 2 * (i - 1) + 1]
end

local function record_of(i)
  return values[2 * i]
end

-- Fencing tokens of the slots; the field '' keeps the last one given out (no slot id is empty).
local tokens = redis.call('HMGET', locks, '', unpack(ids))

-- What holds a slot, by its id and not by its place: callers may name one slot twice in a call,
-- and the later must see what the earlier did. False where nothing holds it.
local held = {}
local scores

local function lock_of(i)
  local lock = held[ids[i]]
  if lock == nil then
    local key = values[2 * i - 1]
    lock = false
    if key then
      scores = scores or redis.call('ZMSCORE', expiry, unpack(ids))
      local until_ms = tonumber(scores[i])
      if not until_ms then
        -- Another client set this key by hand: only Redis knows its end, and there may be none.
        local left_ms = redis.call('PTTL', lock_name(i))
        until_ms = left_ms >= 0 and now_ms + left_ms or 253402300799999
      end
      lock = {key = key, until_ms = until_ms, token = tonumber(tokens[i + 1])}
    end
    held[ids[i]] = lock
  end
  return lock
end

-- What a caller with this lock_key, and this fencing token if it gives one, has to do with a lock. A token that
-- differs names an earlier lock of the same key: that one is gone.
local function claim_on(lock, lock_key, token)
  if not lock then
    return 'gone'
  elseif lock.key ~= lock_key then
    return 'taken'
  end
  return (not token or token == lock.token) and 'yours' or 'gone'
end

-- MGET shows a key of another type as missing. EXISTS counts it, so each key is looked at only when the counts
-- differ: a foreign key must fail its own slot, and that before anything is written.
local function foreign_locks()
  local names, found, foreign = {}, 0, {}
  for i = 1, count do
    names[i] = lock_name(i)
    found = found + (values[2 * i - 1] and 1 or 0)
  end
  if redis.call('EXISTS', unpack(names)) > found then
    for i = 1, count do
      foreign[i] = not values[2 * i - 1] and redis.call('EXISTS', names[i]) == 1
    end
  end
  return foreign
end
