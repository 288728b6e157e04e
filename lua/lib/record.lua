-- A slot's record: a line of fields for the scripts, then the rest of the payload, of which they read resource_id.
--   2<L|N: lockable or not><A|D: active or disabled> active cancelled capacity end start created updated
--   resource_id, start_date, end_date and metadata as given, a line each
-- The leading 2 is the format's version; dates in the first line are in ms. What is asked of very many stands first.
local FIELDS = '^2(%a)(%a) (%d+) (%d+) (%d+) (%-?%d+) (%-?%d+) (%d+) (%d+)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n(.*)$'

local function read_record(text)
  local lockable, status, active, cancelled, capacity, end_ms, start_ms, created, updated,
    resource_id, start_date, end_date, metadata = string.match(text, FIELDS)
  return lockable and {
    lockable = lockable, status = status, capacity = capacity, active = active, cancelled = cancelled,
    created = created, updated = updated, start_ms = start_ms, end_ms = end_ms,
    start_date = start_date, end_date = end_date, resource_id = resource_id, metadata = metadata,
  }
end

local function write_record(r)
  return table.concat({
    '2' .. r.lockable .. r.status, r.active, r.cancelled, r.capacity, r.end_ms, r.start_ms, r.created, r.updated,
  }, ' ') .. '\n' .. table.concat({r.resource_id, r.start_date, r.end_date, r.metadata}, '\n')
end
