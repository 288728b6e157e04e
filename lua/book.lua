-- Guarantee: a slot never has more active bookings than places, and none is made by one who does not hold it while
-- another does. A booking counts, consumes its caller's lock and is kept in one step. One that is there already (a call
-- whose reply was lost is sent again) is told as "booked" once more if it says the same, else as "exists". In mode
-- "all" either every booking is made or nothing changes.
-- KEYS: locks, expiry, events, bookings:created, bookings:slots, bookings:resources, then per slot: record, then per slot: lock
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, mode, then per slot: slot_id, booking_id, lock_key,
-- fencing_token, metadata
--   mode is "each" or "all", where each slot is named once; an empty lock_key stands for none, an empty fencing_token for any
-- Reply: now_us, then per slot: tag, booking, locked_until_ms
-- Tags: booked, exists, slot_not_found, disabled, full, taken, corrupt, withheld
local FIRST_KEY, HEAD, STRIDE = 7, 5, 5
-- include: clock
-- include: slots
-- include: events
-- include: state
-- include: claim
-- include: locks
-- include: availability
-- include: entries
-- include: naming
-- include: bookings
-- include: counters
-- include: sign
-- include: queue
-- include: turns
-- include: due
-- include: taking

local booking_names, bookings = {}, {}
for i = 1, count do
  booking_names[i] = booking_name_of(argument(i, 2))
end
local texts = redis.call('MGET', unpack(booking_names))
for i = 1, count do
  bookings[argument(i, 2)] = texts[i] and read_booking(texts[i])
    or redis.call('EXISTS', booking_names[i]) == 1 and 'corrupt' or nil
end

local function standing(i)
  local booking = bookings[argument(i, 2)]
  if booking == 'corrupt' then
    return 'corrupt'
  elseif booking then
    return booking.slot_id == ids[i] and booking.metadata == argument(i, 5) and 'booked' or 'exists'
  end
  return refusal(i, argument(i, 3), argument(i, 4))
end

local one_refused = false
if ARGV[5] == 'all' then
  for i = 1, count do
    local tag = standing(i)
    one_refused = one_refused or tag and tag ~= 'booked'
  end
end

local reply, now = {now_us}, string.format('%.0f', now_ms)
for i = 1, count do
  local tag, until_ms = standing(i)
  if not tag and one_refused then
    tag = 'withheld'
  elseif not tag then
    local booking = {
      status = 'A', lock = take(i, argument(i, 3)), created_ms = now, updated_ms = now, slot_id = ids[i],
      resource_id = resource_of(i), metadata = argument(i, 5),
    }
    tag, bookings[argument(i, 2)] = 'booked', booking
    redis.call('SET', booking_names[i], write_booking(booking))
    index_booking(argument(i, 2), booking)
    tell('booked', ids[i], record_of(i))
    pass_on(i, argument(i, 3))
  end
  local at = #reply
  reply[at + 1], reply[at + 2] = tag, tag == 'booked' and write_booking(bookings[argument(i, 2)])
  reply[at + 3] = until_ms or 0
end
publish()
write_lines()
return reply
