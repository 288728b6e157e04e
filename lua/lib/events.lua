-- Tells what happened in the same step: one entry of the stream and one message on the channel of the same name,
-- whatever the number of slots. Their text has a line for each event: kind, slot_id, resource_id, locked_until in ms
-- and fencing token, with tabs between; no id has control characters. What is told first happened first.
-- The numbers come as text, so that none is written twice: that takes long.
-- A slot that is handed to the first in line has its ticket, too, so that nobody else wakes.
-- Lines are kept in pieces, of which neighbours mostly have all but the id and the token in common: a string of its own
-- for each would be made, hashed and collected.
local told, told_count = {unpack(KEYS)}, 0  -- with room to begin with: a table that grows is moved
local kind_before, head, resource_before, until_before, middle
local EVENTS_KEPT = 10000
local find, sub = string.find, string.sub  -- a global is looked up by its name each time

local function tell(kind, id, record, until_ms, token, ticket)
  -- The second line of a record (see record). To look for the ends of lines takes half as long as to match them.
  local before = record and find(record, '\n', 1, true)
  local after = before and find(record, '\n', before + 1, true)
  local resource_id = after and sub(record, before + 1, after - 1) or ''
  if kind ~= kind_before then
    kind_before, head = kind, '\n' .. kind .. '\t'
  end
  if resource_id ~= resource_before or until_ms ~= until_before then
    resource_before, until_before = resource_id, until_ms
    middle = '\t' .. resource_id .. '\t' .. (until_ms or '0') .. '\t'
  end
  local at = told_count
  told[at + 1], told[at + 2], told[at + 3], told[at + 4] = head, id, middle, token or '0'
  if ticket then
    told[at + 5], told[at + 6] = '\t', ticket
  end
  told_count = at + (ticket and 6 or 4)
end

local function publish()
  if told_count > 0 then
    told[1] = sub(told[1], 2)  -- a line feed stands between lines
    local text = table.concat(told, '', 1, told_count)
    local entry = redis.call('XADD', KEYS[3], 'MAXLEN', '~', EVENTS_KEPT, '*', 'events', text)
    redis.call('PUBLISH', KEYS[3], entry .. '\n' .. text)
  end
end
