-- Guarantee: a slot goes whole: record, lock, index entries and cancelled bookings. One with active bookings stays. A
-- slot with very many cancelled bookings takes several calls, of which the last removes the slot.
-- KEYS: locks, expiry, events, bookings:created, bookings:slots, bookings:resources, starts, resources,
-- then per slot: record, then per slot: lock
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, then per slot: slot_id
-- Reply: now_us, then per slot: tag
-- Tags: deleted, more, not_found, has_bookings, corrupt
local FIRST_KEY, HEAD, STRIDE = 9, 4, 1
-- include: clock
-- include: slots
-- include: events
-- include: state
-- include: claim
-- include: locks
-- include: record
-- include: entries
-- include: naming
-- include: bookings
-- include: index
-- include: queue
-- include: remove

local reply = {now_us}
for i = 1, count do
  local text, tag = record_of(i), nil
  local record = text and read_record(text)
  if not record then
    tag = redis.call('EXISTS', record_name(i)) == 1 and 'corrupt' or 'not_found'
  elseif tonumber(record.active) > 0 then
    tag = 'has_bookings'
  else
    tag = remove(ids[i], record) and 'deleted' or 'more'
    keep_record(i, tag == 'more' and write_record(record))
  end
  reply[i + 1] = tag
end
publish()
return reply
