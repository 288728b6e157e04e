-- The lock that stands in the way on slot i. Where it ended by its date and nobody told yet, it is that of the first in
-- line, who is about to get the slot.
local function lock_in_the_way(i)
  local lock = lock_of(i)
  if not lock then
    read_tokens()
    lock = is_waited_for(tokens[i + 1]) and next_in_line(ids[i], lock_name(i)) or nil
  end
  return lock
end
