-- Redis' clock, the only one that judges a date.
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now_us / 1000)

-- A caller names a date in ms, or with a plus sign a duration in ms that is counted from now.
local function date(text)
  if string.byte(text) == 43 then
    return now_ms + tonumber(text)
  end
  return tonumber(text)
end

-- Why a lock can't be asked to last until this date; nil if it can.
local function misdated(until_ms, max_lock_ms)
  if until_ms <= now_ms then
    return 'past'
  elseif until_ms - now_ms > max_lock_ms then
    return 'too_long'
  end
end
