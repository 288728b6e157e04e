-- The keys of slots and bookings that the script itself comes upon: an id between prefix and suffix.
local function lock_name_of(id)
  return ARGV[1] .. id .. ARGV[2]
end

local function record_name_of(id)
  return ARGV[1] .. id .. ARGV[3]
end

local function booking_name_of(id)
  return ARGV[4] .. id .. ARGV[3]
end
