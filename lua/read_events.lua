-- Guarantee: reads only. Gives entries of the stream from one on, and tells whether that one is still kept: if not,
-- what came after it may be gone too.
-- KEYS: locks, expiry, events
-- ARGV: from_id, count
--   an empty from_id stands for the entry that is the last now
-- Reply: now_us, tag, then per entry: entry_id, text
-- Tags: kept, missed
local from_id, count = ARGV[1], ARGV[2]
-- include: clock
-- include: events

if from_id == '' then
  local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
  return {now_us, 'kept', last[1] and last[1][1] or '0-0', ''}
end
local entries = redis.call('XRANGE', KEYS[3], from_id, '+', 'COUNT', count)
local kept = entries[1] and entries[1][1] == from_id
if from_id == '0-0' then -- the beginning, which is there as long as nothing was ever dropped
  kept = redis.call('XLEN', KEYS[3]) < EVENTS_KEPT
end
local reply = {now_us, kept and 'kept' or 'missed'}
for _, entry in ipairs(entries) do
  reply[#reply + 1] = entry[1]
  reply[#reply + 1] = entry[2][2]
end
return reply
