-- Guarantee: reads only. Lists slots in the order of their start, as the caller sees them; with a filter that no
-- index serves it looks at one chunk a call, so that no call holds the server for long.
-- KEYS: locks, expiry, events, starts, resources
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, resource_id, from_ms, to_ms, available, lock_key,
-- cursor, chunk, skip, limit
--   resource_id and available ("1", "0") may be empty for any; from_ms is the earliest start and to_ms the latest end,
--   both may be empty; cursor is where the last call stopped, 0 at first; the slots returned are those after the first
--   skip matches, up to limit
-- Reply: now_us, next_cursor, matched, then per slot: slot_id, record, locked_until_ms, available
--   next_cursor is 0 at the end
local locks, starts, resources = KEYS[1], KEYS[4], KEYS[5]
local resource_id, from_ms, to_ms, wanted, lock_key = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local cursor, chunk, skip, limit = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
-- include: clock
-- include: availability
-- include: entries
-- include: sign
-- include: queue

-- What ends at a date started before it, so both bounds narrow the range of starts.
local filtered = to_ms ~= '' or wanted ~= ''
local source, count_command, range_command, low, high
if resource_id == '' then
  source, count_command, range_command = starts, 'ZCOUNT', 'ZRANGEBYSCORE'
  low = from_ms ~= '' and from_ms or '-inf'
  high = to_ms ~= '' and '(' .. to_ms or '+inf'
else
  source, count_command, range_command = resources, 'ZLEXCOUNT', 'ZRANGEBYLEX'
  low = '[' .. resource_id .. '\n' .. (from_ms ~= '' and date_part(tonumber(from_ms)) or '')
  -- The character after a line feed ends the resource's range.
  high = '(' .. resource_id .. (to_ms ~= '' and '\n' .. date_part(tonumber(to_ms)) or '\11')
end

local matched, only = 0, tonumber(wanted)
if not filtered then
  matched, cursor, chunk = redis.call(count_command, source, low, high), skip, limit
end
local found = redis.call(range_command, source, low, high, 'LIMIT', cursor, chunk)
if #found == 0 then
  return {now_us, 0, matched}
end

-- Hundreds of slots a call: what is done for each is done without functions where that can be.
local sub, prefix, lock_suffix, record_suffix = string.sub, ARGV[1], ARGV[2], ARGV[3]
local id_at = resource_id == '' and 1 or #entry(resource_id, 0, '') + 1
local ids, lock_names = {unpack(found)}, {unpack(found)}
for i = 1, #found do
  local id = sub(found[i], id_at)
  ids[i], lock_names[i] = id, prefix .. id .. lock_suffix
end
local keys = redis.call('MGET', unpack(lock_names))

-- On a busy day most slots are another's: who asks for free ones has them passed over before more is read of them.
local shown, shown_ids, record_names = {}, {}, {}
for i = 1, #ids do
  if not (only == 1 and keys[i] and keys[i] ~= lock_key) then
    local at = #shown + 1
    shown[at], shown_ids[at], record_names[at] = i, ids[i], prefix .. ids[i] .. record_suffix
  end
end
local held = #shown > 0 and redis.call('HMGET', locks, unpack(shown_ids))
local records = #shown > 0 and redis.call('MGET', unpack(record_names))

-- A slot's end is compared by subtracting, which reads its text as a number without a call. A record of nonsense ends
-- never.
local latest_ms, END, match, never = tonumber(to_ms), '^3%a%a %d+ %d+ %d+ (%-?%d+) ', string.match, math.huge
local reply = {now_us, filtered and #found == chunk and cursor + chunk or 0, 0}
for n = 1, #shown do
  local i, record = shown[n], records[n]
  if record then
    local key, turn = keys[i], nil
    if not key and held[n] and is_waited_for(held[n]) then
      turn = next_in_line(ids[i], lock_names[i])
      key = turn and turn.key
    end
    local why_not = obstacle(record, key, lock_key)
    local open = why_not and 0 or 1
    if why_not ~= 'corrupt' and (not only or only == open)
      and (not latest_ms or (match(record, END) or never) - latest_ms <= 0) then
      matched = matched + (filtered and 1 or 0)
      if not filtered or matched > skip and matched <= skip + limit then
        local until_ms = turn and turn.until_ms or tonumber(string.match(held[n] or '', ' (%d+)$'))
        local at = #reply
        reply[at + 1], reply[at + 2] = ids[i], record
        reply[at + 3], reply[at + 4] = key and until_ms or 0, open
      end
    end
  end
end
reply[3] = matched
return reply
