-- The one place that says whether a slot can be taken.
local sub, match = string.sub, string.match  -- a global is looked up by its name each time

-- Why nobody can book this slot, nil if somebody can; then whether it is lockable.
local function unbookable(record)
  -- Mostly it is lockable and active, and nobody has booked it: to see just that takes a third as long.
  if sub(record, 1, 6) == '3LA 0 ' then
    return nil, 'L'
  end
  local lockable, status, active, capacity = match(record, '^3(%a)(%a) (%d+) %d+ (%d+) ')
  if not lockable then
    return 'corrupt'
  elseif status ~= 'A' then
    return 'disabled', lockable
  elseif tonumber(active) >= tonumber(capacity) then
    return 'full', lockable
  end
  return nil, lockable
end

-- What stands in the way of a booking by the one who gives this lock_key, where `key` has the slot or will be given it;
-- nil if nothing does.
local function obstacle(record, key, lock_key)
  return not record and 'not_found' or (unbookable(record)) or key and key ~= lock_key and 'taken' or nil
end
