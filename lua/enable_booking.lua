-- Guarantee: a cancelled booking takes its place again under the conditions of a new one, and consumes its caller's
-- lock as that does; one that is active stays so.
-- KEYS: locks, expiry, events, bookings:created, bookings:slots, bookings:resources
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, then per booking: booking_id, lock_key
--   an empty lock_key stands for none
-- Reply: now_us, then per booking: tag, booking, locked_until_ms
-- Tags: enabled, not_found, slot_not_found, disabled, full, taken, corrupt
local HEAD, STRIDE, TARGET = 4, 2, nil
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

for i = 1, count do
  local booking, tag, until_ms = bookings[argument(i, 1)], nil, nil
  if not booking then
    tag = absent(i)
  elseif booking.status == 'C' then
    local at = place[booking.slot_id]
    tag, until_ms = refusal(at, argument(i, 2), '')
    if not tag then
      booking.status, booking.lock = 'A', take(at, argument(i, 2))
      count_bookings(at, 0, -1)
      keep(i, booking)
      tell('booked', booking.slot_id, record_of(at))
      pass_on(at, argument(i, 2))
    end
  end
  answer(i, tag or 'enabled', until_ms)
end
publish()
write_lines()
return reply
