-- A slot's record: a line of fields for the scripts, then the rest of the payload, of which they read resource_id.
--   3<L|N: lockable or not><A|D: active or disabled> active cancelled capacity end start
--   resource_id, start_date and end_date as given, a line each
--   created updated
--   metadata as given
-- The leading 3 is the format's version; all dates but those that are as given are in ms. What is asked of very many
-- stands first, and last what the seats of an event differ in: who reads records keeps what the four lines before say.
local FIELDS =
  '^3(%a)(%a) (%d+) (%d+) (%d+) (%-?%d+) (%-?%d+)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n(%d+) (%d+)\n(.*)$'

local function read_record(text)
  local lockable, status, active, cancelled, capacity, end_ms, start_ms,
    resource_id, start_date, end_date, created, updated, metadata = string.match(text, FIELDS)
  return lockable and {
    lockable = lockable, status = status, capacity = capacity, active = active, cancelled = cancelled,
    created = created, updated = updated, start_ms = start_ms, end_ms = end_ms,
    start_date = start_date, end_date = end_date, resource_id = resource_id, metadata = metadata,
  }
end

local function write_record(r)
  return table.concat({
    '3' .. r.lockable .. r.status, r.active, r.cancelled, r.capacity, r.end_ms, r.start_ms,
  }, ' ') .. '\n' .. table.concat({
    r.resource_id, r.start_date, r.end_date, r.created .. ' ' .. r.updated, r.metadata,
  }, '\n')
end
