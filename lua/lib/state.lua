-- What stands of the slots, read with one command for all of them: of the slot at place p, the lock_key of its lock is
-- values[2p - 1], its record values[2p], its fencing token tokens[p + 1], and its lock's end in ms ends[p], both as text
-- mostly: to read and write numbers takes long. Whoever changes a slot changes it here, too. As it was read, an end has
-- the token before it (see HELD): few want to know it, and `end_of` tells.
-- include: held
local locks, expiry = KEYS[1], KEYS[2]
local values = #names > 0 and redis.call('MGET', unpack(names)) or {}
-- The field without a name is the last token that was given out.
local tokens = redis.call('HMGET', locks, '', unpack(ids))
local last_token = tonumber(tokens[1]) or 0
local ends = {unpack(tokens, 2)}
for i = 1, #ids do
  local held = tokens[i + 1]
  if held then
    -- As HELD has it, which would take twice as long to match.
    local space = string.find(held, ' ', 1, true)
    tokens[i + 1], ends[i] = space and string.sub(held, 1, space - 1), space and held
  end
end
local lapsed = {}  -- the slots whose lock ended by its date, and that were told of it here
