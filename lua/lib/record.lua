-- A slot's record: a line of fields for the scripts, then the rest of the payload, which they never parse.
--   1<L|N: lockable or not><A|D: active or disabled> capacity active cancelled created updated start end
--   start_date, end_date, resource_id and metadata as given, a line each
-- The leading 1 is the format's version; dates in the first line are in ms.
local FIELDS = '^1(%a)(%a) (%d+) (%d+) (%d+) (%d+) (%d+) (%-?%d+) (%-?%d+)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n(.*)$'

local function read_record(text)
  local lockable, status, capacity, active, cancelled, created, updated, start_ms, end_ms,
    start_date, end_date, resource_id, metadata = string.match(text, FIELDS)
  return lockable and {
    lockable = lockable, status = status, capacity = capacity, active = active, cancelled = cancelled,
    created = created, updated = updated, start_ms = start_ms, end_ms = end_ms,
    start_date = start_date, end_date = end_date, resource_id = resource_id, metadata = metadata,
  }
end

local function write_record(r)
  return table.concat({
    '1' .. r.lockable .. r.status, r.capacity, r.active, r.cancelled, r.created, r.updated, r.start_ms, r.end_ms,
  }, ' ') .. '\n' .. table.concat({r.start_date, r.end_date, r.resource_id, r.metadata}, '\n')
end
