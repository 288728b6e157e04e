-- Guarantee: reads only.
-- KEYS: locks, expiry, events, bookings:created, bookings:slots, bookings:resources
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, then per booking: booking_id
-- Reply: now_us, then per booking: tag, booking, locked_until_ms
-- Tags: found, not_found, corrupt
local HEAD, STRIDE, TARGET = 4, 1, nil
-- include: clock
-- include: entries
-- include: naming
-- include: bookings
-- include: booked

for i = 1, count do
  answer(i, bookings[argument(i, 1)] and 'found' or absent(i))
end
return reply
