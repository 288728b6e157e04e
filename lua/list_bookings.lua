-- Guarantee: reads only. Lists bookings in the order they were made; with a filter that no index serves it looks at one
-- chunk a call, so that no call holds the server for long.
-- KEYS: locks, expiry, events, bookings:created, bookings:slots, bookings:resources
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, slot_id, resource_id, status, cursor, chunk, skip, limit
--   slot_id, resource_id and status (A or C) may be empty for any; cursor is where the last call stopped, 0 at first;
--   the bookings returned are those after the first skip matches, up to limit
-- Reply: now_us, next_cursor, matched, then per booking: booking_id, booking
--   next_cursor is 0 at the end
local slot_id, resource_id, status = ARGV[5], ARGV[6], ARGV[7]
local cursor, chunk, skip, limit = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
-- include: clock
-- include: entries
-- include: naming
-- include: bookings

local owner = slot_id ~= '' and slot_id or resource_id
local source = slot_id ~= '' and by_slot or by_resource
local filtered = status ~= '' or slot_id ~= '' and resource_id ~= ''

-- What stands between a line feed and the next character is an owner's.
local low, high = '[' .. owner .. '\n', '(' .. owner .. '\11'
local matched = 0
if not filtered then
  matched = owner == '' and redis.call('ZCARD', created) or redis.call('ZLEXCOUNT', source, low, high)
  cursor, chunk = skip, limit
end
local found = owner == '' and redis.call('ZRANGE', created, cursor, cursor + chunk - 1)
  or redis.call('ZRANGEBYLEX', source, low, high, 'LIMIT', cursor, chunk)
if #found == 0 then
  return {now_us, 0, matched}
end

local ids, booking_names = {}, {}
for i, text in ipairs(found) do
  ids[i] = owner == '' and text or id_in(text)
  booking_names[i] = booking_name_of(ids[i])
end
local texts = redis.call('MGET', unpack(booking_names))

local reply = {now_us, filtered and #found == chunk and cursor + chunk or 0, 0}
for i, id in ipairs(ids) do
  local booking = texts[i] and read_booking(texts[i])
  if booking and (status == '' or booking.status == status)
    and (resource_id == '' or booking.resource_id == resource_id) then
    matched = matched + (filtered and 1 or 0)
    if not filtered or matched > skip and matched <= skip + limit then
      reply[#reply + 1] = id
      reply[#reply + 1] = texts[i]
    end
  end
end
reply[3] = matched
return reply
