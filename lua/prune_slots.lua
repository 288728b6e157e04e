-- Guarantee: removes slots that ended before a date, whole and oldest first. One that is locked or has active
-- bookings stays; so does one whose lock ended by its date, if it is about to go to the first in line.
-- KEYS: locks, expiry, events, bookings:created, bookings:slots, bookings:resources, starts, resources
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, before_ms, skip, chunk
--   skip passes over what earlier calls kept
-- Reply: now_us, pruned, kept, more
--   more is 0 when there are none left
local before_ms, skip, chunk = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
-- include: clock
-- include: events
-- include: record
-- include: entries
-- include: naming
-- include: bookings
-- include: index
-- include: sign
-- include: held
-- include: queue
-- include: remove

local function is_held(id, record)
  if redis.call('EXISTS', lock_name_of(id)) == 1 then
    return true
  end
  local is_open = record.lockable == 'L' and record.status == 'A'
  return is_open and is_waited_for(redis.call('HGET', KEYS[1], id)) and next_in_line(id, lock_name_of(id)) ~= nil
end

local ids = redis.call('ZRANGEBYSCORE', starts, '-inf', '(' .. ARGV[5], 'LIMIT', skip, chunk)
local pruned, kept = 0, 0
for _, id in ipairs(ids) do
  local text = redis.call('MGET', record_name_of(id))[1]
  local record = text and read_record(text)
  if not (record and tonumber(record.end_ms) <= before_ms and record.active == '0') or is_held(id, record) then
    kept = kept + 1
  elseif remove(id, record) then
    pruned = pruned + 1
  else
    publish()
    return {now_us, pruned, kept, 1}
  end
end
publish()
return {now_us, pruned, kept, #ids == chunk and 1 or 0}
