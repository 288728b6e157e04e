-- The lock_key that has slot i, and until when; nil if none has. Where a lock ended by its date and nobody told yet, it
-- is that of the first in line, who is about to get the slot.
local function lock_in_the_way(i)
  local key = key_of(i)
  if key then
    return key, end_of(i)
  end
  local turn = is_waited_for(tokens[first[i] + 1]) and next_in_line(ids[i], lock_name(i))
  if turn then
    return turn.key, turn.until_ms
  end
end
