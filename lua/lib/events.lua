-- Tells what happened in the same step: one entry of the stream and one message on the channel of the same name,
-- whatever the number of slots. Their text has a line for each event: kind, slot_id, resource_id, locked_until in ms
-- and fencing token, with tabs between; no id has control characters. What is told first happened first.
-- The numbers come as text, so that none is written twice: that takes long.
-- A slot that is handed to the first in line has its ticket, too, so that nobody else wakes.
-- Each slot has two of KEYS: with as many places to begin with it need not grow while an event of each is told.
local told, told_count = {unpack(KEYS)}, 0
local EVENTS_KEPT = 10000
local find, sub = string.find, string.sub  -- a global is looked up by its name each time

local function tell(kind, id, record, until_ms, token, ticket)
  -- The second line of a record (see record). To look for the ends of lines takes half as long as to match them.
  local before = record and find(record, '\n', 1, true)
  local after = before and find(record, '\n', before + 1, true)
  local resource_id = after and sub(record, before + 1, after - 1) or ''
  local line = kind .. '\t' .. id .. '\t' .. resource_id .. '\t' .. (until_ms or '0') .. '\t' .. (token or '0')
  told_count = told_count + 1
  told[told_count] = ticket and line .. '\t' .. ticket or line
end

local function publish()
  if told_count > 0 then
    local text = table.concat(told, '\n', 1, told_count)
    local entry = redis.call('XADD', KEYS[3], 'MAXLEN', '~', EVENTS_KEPT, '*', 'events', text)
    redis.call('PUBLISH', KEYS[3], entry .. '\n' .. text)
  end
end
