-- Guarantee: a booking moves from one slot to another in one step, and both count it right. An active one needs a
-- place there under the conditions of a new one, and consumes its caller's lock as that does; a cancelled one stays
-- cancelled. One that stands there already is not touched.
-- KEYS: locks, expiry, events, bookings:created, bookings:slots, bookings:resources
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, then per booking: booking_id, slot_id, lock_key
--   slot_id is where it goes; an empty lock_key stands for none
-- Reply: now_us, then per booking: tag, booking, locked_until_ms
-- Tags: rescheduled, not_found, slot_not_found, disabled, full, taken, corrupt
local HEAD, STRIDE, TARGET = 4, 3, 2
-- include: clock
-- include: entries
-- include: naming
-- include: bookings
-- include: booked
-- include: events
-- include: state
-- include: claim
-- include: locks
-- include: availability
-- include: counters
-- include: sign
-- include: queue
-- include: turns
-- include: due
-- include: taking

local function move(i, booking)
  local from, to = place[booking.slot_id], place[argument(i, TARGET)]
  local tag, until_ms = refusal(to, argument(i, 3), '')
  if booking.status == 'A' and tag or tag == 'slot_not_found' or tag == 'corrupt' then
    return tag, until_ms
  end
  if booking.status == 'A' then
    count_bookings(from, -1, 0)
    tell('cancelled', ids[from], record_of(from))
    booking.lock = take(to, argument(i, 3))
    tell('booked', ids[to], record_of(to))
    pass_on(to, argument(i, 3))
  else
    count_bookings(from, 0, -1)
    count_bookings(to, 0, 1)
  end
  unindex_booking(argument(i, 1), booking)
  booking.slot_id = ids[to]
  booking.resource_id = resource_of(to)
  index_booking(argument(i, 1), booking)
  keep(i, booking)
end

for i = 1, count do
  local booking, tag, until_ms = bookings[argument(i, 1)], nil, nil
  if not booking then
    tag = absent(i)
  elseif booking.slot_id ~= argument(i, TARGET) then
    tag, until_ms = move(i, booking)
  end
  answer(i, tag or 'rescheduled', until_ms)
end
publish()
write_lines()
return reply
