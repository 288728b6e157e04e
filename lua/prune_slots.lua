-- Guarantee: removes slots that ended before a date, whole and oldest first. One that is locked or has active
-- bookings stays.
-- KEYS: locks, expiry, starts, resources
-- ARGV: slot_prefix, lock_suffix, record_suffix, before_ms, skip, chunk
--   the keys of a slot are its id between prefix and suffix; skip passes over what earlier calls kept
-- Reply: now_us, pruned, kept
--   kept plus pruned is below chunk when no more are left
local starts, resources = KEYS[3], KEYS[4]
local slot_prefix, lock_suffix, record_suffix = ARGV[1], ARGV[2], ARGV[3]
local before_ms, skip, chunk = tonumber(ARGV[4]), ARGV[5], ARGV[6]
-- include: clock
-- include: record
-- include: index
-- include: remove

-- Starts tell where to look: what ended before the date started before it.
local ids = redis.call('ZRANGEBYSCORE', starts, '-inf', '(' .. ARGV[4], 'LIMIT', skip, chunk)
local pruned = 0
for _, id in ipairs(ids) do
  local record_name, lock_name = slot_prefix .. id .. record_suffix, slot_prefix .. id .. lock_suffix
  local text = redis.call('MGET', record_name)[1]
  local record = text and read_record(text)
  if record and tonumber(record.end_ms) <= before_ms and record.active == '0'
    and redis.call('EXISTS', lock_name) == 0 then
    remove(starts, resources, record, id, record_name, lock_name)
    pruned = pruned + 1
  end
end
return {now_us, pruned, #ids - pruned}
