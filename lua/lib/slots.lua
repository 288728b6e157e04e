-- The slots that this call names. The script says where they stand: the first slot's KEYS, the ARGV before the first
-- slot, the ARGV of each.
local names, ids = {unpack(KEYS, FIRST_KEY)}, {}
local count = #names / 2
for i = 1, count do
  ids[i] = ARGV[HEAD + (i - 1) * STRIDE + 1]
end

local function argument(i, position)
  return ARGV[HEAD + (i - 1) * STRIDE + position]
end
