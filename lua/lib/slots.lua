-- The slots that this call names. The script says where they stand: the first slot's KEYS, the ARGV before the first
-- slot, the ARGV of each. Callers may name one slot twice in a call, and the later must see what the earlier did: what
-- is known of a slot stands at the place where the call names it first.
local KEYS, ARGV = KEYS, ARGV  -- a global is looked up by its name each time
local names = {unpack(KEYS, FIRST_KEY)}
local count = #names / 2

-- A table with room for so many, and anything or nothing in it until they are written. One that grows is moved at each
-- doubling, which in a server that holds very much touches memory that is in no cache.
local function room_for(length)
  return {unpack(KEYS, 1, length)}
end

local ids, first = room_for(count), room_for(count)
do
  local places = {}
  for i = 1, count do
    local id = ARGV[HEAD + (i - 1) * STRIDE + 1]
    local place = places[id] or i
    ids[i], first[i], places[id] = id, place, place
  end
end
