-- Guarantee: a booking goes whole, and its slot counts it no longer, in one step.
-- KEYS: locks, expiry, events, bookings:created, bookings:slots, bookings:resources
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, then per booking: booking_id
-- Reply: now_us, then per booking: tag
-- Tags: deleted, not_found, corrupt
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
  local id = argument(i, 1)
  local booking = bookings[id]
  reply[i + 1] = booking and 'deleted' or absent(i)
  if booking then
    local active = booking.status == 'A'
    count_bookings(place[booking.slot_id], active and -1 or 0, active and 0 or -1)
    unindex_booking(id, booking)
    redis.call('DEL', booking_names[i])
    bookings[id] = nil
    if active then
      tell('cancelled', booking.slot_id, record_of(place[booking.slot_id]))
    end
  end
end
publish()
return reply
