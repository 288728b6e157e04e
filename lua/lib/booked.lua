-- The bookings that this call names by their ids, and the slots that they stand on, or go to where TARGET says which
-- argument names such a slot.
local count = (#ARGV - HEAD) / STRIDE
local function argument(i, position)
  return ARGV[HEAD + (i - 1) * STRIDE + position]
end

local booking_names = {}
for i = 1, count do
  booking_names[i] = booking_name_of(argument(i, 1))
end
local texts = redis.call('MGET', unpack(booking_names))

local ids, names, first, place = {}, {}, {}, {}
local function add(slot_id)
  if not place[slot_id] then
    ids[#ids + 1] = slot_id
    place[slot_id], first[#ids] = #ids, #ids
    names[#names + 1], names[#names + 2] = lock_name_of(slot_id), record_name_of(slot_id)
  end
end

-- By id, and not by their place: a call may name a booking twice.
local bookings = {}
for i = 1, count do
  local booking = texts[i] and read_booking(texts[i])
  if booking then
    bookings[argument(i, 1)] = booking
    add(booking.slot_id)
    if TARGET then
      add(argument(i, TARGET))
    end
  end
end

local function absent(i)
  return redis.call('EXISTS', booking_names[i]) == 1 and 'corrupt' or 'not_found'
end

local function keep(i, booking)
  booking.updated_ms = string.format('%.0f', now_ms)
  redis.call('SET', booking_names[i], write_booking(booking))
end

local reply = {now_us}
local function answer(i, tag, until_ms)
  local at, booking = #reply, bookings[argument(i, 1)]
  reply[at + 1], reply[at + 2], reply[at + 3] = tag, booking and write_booking(booking) or false, until_ms or 0
end
