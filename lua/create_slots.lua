-- Guarantee: a slot is registered once. One that is registered already stays as it is: told as "created" again when
-- it says the same (a call whose reply was lost is sent again), else as "exists".
-- KEYS: locks, expiry, events, starts, resources, then per slot: record, then per slot: lock
-- ARGV: per slot: slot_id, resource_id, lockable, status, capacity, start_ms, end_ms, start_date, end_date, metadata
--   lockable is L or N, status A or D; dates are given in ms and as text
-- Reply: now_us, then per slot: tag, record, locked_until_ms, available
-- Tags: created, exists, corrupt
local starts, resources = KEYS[4], KEYS[5]
local FIRST_KEY, HEAD, STRIDE = 6, 0, 10
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

-- Both indexes must be what they should be before the first record is written.
redis.call('ZCARD', starts)
redis.call('ZCARD', resources)
redis.call('XLEN', KEYS[3])

local function same(a, b)
  for _, field in ipairs({'lockable', 'status', 'capacity', 'start_date', 'end_date', 'resource_id', 'metadata'}) do
    if a[field] ~= b[field] then
      return false
    end
  end
  return true
end

local reply, now = {now_us}, string.format('%.0f', now_ms)
for i = 1, count do
  local slot = {
    resource_id = argument(i, 2), lockable = argument(i, 3), status = argument(i, 4), capacity = argument(i, 5),
    start_ms = argument(i, 6), end_ms = argument(i, 7), start_date = argument(i, 8), end_date = argument(i, 9),
    metadata = argument(i, 10), active = '0', cancelled = '0', created = now, updated = now,
  }
  local record, tag = write_record(slot), 'created'
  if redis.call('SET', record_name(i), record, 'NX') then
    index(starts, resources, slot, ids[i])
    tell('slot_changed', ids[i], record)
  else
    record = redis.call('TYPE', record_name(i)).ok == 'string' and redis.call('GET', record_name(i))
    local present = record and read_record(record)
    tag = not present and 'corrupt' or same(present, slot) and 'created' or 'exists'
  end
  view(reply, i, record, '')
  reply[#reply - 3] = tag
end
publish()
return reply
