-- Guarantee: a slot goes whole: record, lock and index entries, in one step. One with active bookings stays.
-- KEYS: locks, expiry, starts, resources, then per slot: lock, record
-- ARGV: per slot: slot_id
-- Reply: now_us, then per slot: tag
-- Tags: deleted, not_found, has_bookings, corrupt
local starts, resources = KEYS[3], KEYS[4]
local FIRST_KEY, HEAD, STRIDE = 5, 0, 1
-- include: clock
-- include: locks
-- include: record
-- include: index
-- include: remove

local reply = {now_us}
for i = 1, count do
  local text = record_of(i)
  local record, tag = text and read_record(text), 'deleted'
  if not record then
    tag = redis.call('EXISTS', record_name(i)) == 1 and 'corrupt' or 'not_found'
  elseif tonumber(record.active) > 0 then
    tag = 'has_bookings'
  else
    remove(starts, resources, record, ids[i], record_name(i), lock_name(i))
  end
  reply[i + 1] = tag
end
return reply
