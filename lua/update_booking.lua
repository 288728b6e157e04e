-- Guarantee: a booking's metadata is what is given, and nothing else of it changes. One that says so already is not
-- touched.
-- KEYS: locks, expiry, events, bookings:created, bookings:slots, bookings:resources
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, then per booking: booking_id, metadata
-- Reply: now_us, then per booking: tag, booking, locked_until_ms
-- Tags: updated, not_found, corrupt
local HEAD, STRIDE, TARGET = 4, 2, nil
-- include: clock
-- include: entries
-- include: naming
-- include: bookings
-- include: booked

for i = 1, count do
  local booking = bookings[argument(i, 1)]
  if booking and booking.metadata ~= argument(i, 2) then
    booking.metadata = argument(i, 2)
    keep(i, booking)
  end
  answer(i, booking and 'updated' or absent(i))
end
return reply
