-- The one place that says whether a slot can be taken.

-- Why nobody can book this slot, nil if somebody can; then whether it is lockable.
local function unbookable(record)
  -- Mostly it is active and nobody has booked it: to see just that takes half as long.
  local lockable_and_free = string.match(record, '^1(%a)A %d+ 0 ')
  if lockable_and_free then
    return nil, lockable_and_free
  end
  local lockable, status, capacity, active = string.match(record, '^1(%a)(%a) (%d+) (%d+) ')
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
