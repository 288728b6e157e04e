-- The slots that this call names. The script says where they stand: the first of their KEYS, the ARGV before the first
-- slot, the ARGV of each. Callers may name one slot twice in a call, and the later must see what the earlier did: what
-- is known of a slot stands at the place where the call names it first.
-- In KEYS all records come before all locks: Valkey fetches the first ones from memory at once (16, or 128 where it is
-- told to, as EmbeddedServer does), and of a record there is more to fetch. From here on a slot's two names are a pair.
local KEYS, ARGV = KEYS, ARGV  -- a global is looked up by its name each time
local names = {unpack(KEYS, FIRST_KEY)}
local count = #names / 2
for i = 1, count do
  names[2 * i - 1], names[2 * i] = KEYS[FIRST_KEY - 1 + count + i], KEYS[FIRST_KEY - 1 + i]
end

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
