-- The one place that says whether a slot can be taken.

-- Why nobody can book this slot, nil if somebody can; then whether it is lockable.
local function unbookable(record)
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

-- What stands in the way of a booking by the one who gives this lock_key; nil if nothing does.
local function obstacle(record, lock, lock_key)
  return (unbookable(record)) or lock and lock.key ~= lock_key and 'taken' or nil
end

-- The same as the payload's `available`, 1 or 0.
local function available(record, lock, lock_key)
  return record and not obstacle(record, lock, lock_key) and 1 or 0
end
