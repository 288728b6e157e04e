-- The slots that this call names. The script says where they stand: the first slot's KEYS, the ARGV before the first
-- slot, the ARGV of each. Callers may name one slot twice in a call, and the later must see what the earlier did: what
-- is known of a slot stands at the place where the call names it first.
local names, ids, first = {unpack(KEYS, FIRST_KEY)}, {}, {}
local count = #names / 2
do
  local places = {}
  for i = 1, count do
    local id = ARGV[HEAD + (i - 1) * STRIDE + 1]
    local place = places[id] or i
    ids[i], first[i], places[id] = id, place, place
  end
end
