-- Guarantee: changes the fields that are given, in one step, and leaves the others. A slot never gets fewer places
-- than it has active bookings, nor a start that is not before its end. A slot that says all this already is not
-- touched.
-- KEYS: locks, expiry, events, starts, resources, then per slot: record, then per slot: lock
-- ARGV: per slot: slot_id, lockable, status, capacity, start_ms, end_ms, start_date, end_date, metadata
--   lockable is L or N, status A or D; dates are given in ms and as text; an empty text leaves the field
-- Reply: now_us, then per slot: tag, record, locked_until_ms, available
-- Tags: updated, not_found, corrupt, capacity_too_small, start_not_before_end
local starts, resources = KEYS[4], KEYS[5]
local FIRST_KEY, HEAD, STRIDE = 6, 0, 9
-- include: clock
-- include: slots
-- include: events
-- include: state
-- include: claim
-- include: locks
-- include: availability
-- include: record
-- include: entries
-- include: index
-- include: sign
-- include: queue
-- include: due
-- include: view
local FIELDS_GIVEN = {
  'lockable', 'status', 'capacity', 'start_ms', 'end_ms', 'start_date', 'end_date', 'metadata',
}

redis.call('ZCARD', starts)
redis.call('ZCARD', resources)
redis.call('XLEN', KEYS[3])

local function update(i, record)
  local old, new = read_record(record), read_record(record)
  if not old then
    return 'corrupt', record
  end
  for position, field in ipairs(FIELDS_GIVEN) do
    local value = argument(i, position + 1)
    if value ~= '' then
      new[field] = value
    end
  end
  if tonumber(new.capacity) < tonumber(new.active) then
    return 'capacity_too_small', record
  elseif tonumber(new.start_ms) >= tonumber(new.end_ms) then
    return 'start_not_before_end', record
  elseif write_record(new) == record then
    return 'updated', record
  end
  new.updated = string.format('%.0f', now_ms)
  record = write_record(new)
  keep_record(i, record)
  redis.call('SET', record_name(i), record)
  tell('slot_changed', ids[i], record)
  if new.start_ms ~= old.start_ms then
    unindex(starts, resources, old, ids[i])
    index(starts, resources, new, ids[i])
  end
  return 'updated', record
end

local reply = {now_us}
for i = 1, count do
  local record, tag = record_of(i), nil
  if record then
    tag, record = update(i, record)
  end
  view(reply, i, record, '')
  reply[#reply - 3] = tag or reply[#reply - 3]
end
publish()
return reply
