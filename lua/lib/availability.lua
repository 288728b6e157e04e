-- The one place that says whether a slot can be taken. Whose lock is on it, if any, comes from lock_of.

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

-- Would a booking by the one who gives this lock_key succeed now? 1 or 0, as the payload's `available`.
local function available(record, lock, lock_key)
  local open = record and not unbookable(record) and (not lock or lock.key == lock_key)
  return open and 1 or 0
end
