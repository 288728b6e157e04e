-- Guarantee: a cancelled booking gives its place back, in one step and once.
-- KEYS: locks, expiry, events, bookings:created, bookings:slots, bookings:resources
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, then per booking: booking_id
-- Reply: now_us, then per booking: tag, booking, locked_until_ms
-- Tags: cancelled, not_found, corrupt
local HEAD, STRIDE, TARGET = 4, 1, nil
-- include: clock
-- include: entries
-- include: naming
-- include: bookings
-- include: booked
-- include: events
-- include: state
-- include: claim
-- include: locks
-- include: counters

for i = 1, count do
  local booking = bookings[argument(i, 1)]
  if booking and booking.status == 'A' then
    booking.status = 'C'
    local at = place[booking.slot_id]
    count_bookings(at, -1, 1)
    keep(i, booking)
    tell('cancelled', booking.slot_id, record_of(at))
  end
  answer(i, booking and 'cancelled' or absent(i))
end
publish()
return reply
