-- The line before a slot: who waits for it fairly, in the order they came. Its queue has the tickets by arrival in µs.
-- Beside it, a hash says of each ticket until when it lives unless it is renewed (ms), the fencing token if the slot
-- was given to it already (else 0), and its lock_key.
-- In `locks`, a plus sign before the token of a lock says that there may be a line (`is_waited_for`). Whoever ends such a
-- lock, or finds that it ended by its date, looks; so a slot that nobody waits for costs nothing. As a number the token is
-- the same.
-- key suffixes: LOCK, QUEUE, TICKETS
local LOOK = 32
local lines = {}

local function line_of(id, lock_name)
  local line = lines[id]
  if not line then
    local stem = string.sub(lock_name, 1, -#LOCK_SUFFIX - 1)
    line = {queue = stem .. QUEUE_SUFFIX, tickets = stem .. TICKETS_SUFFIX, left = {}, has_left = {}}
    lines[id] = line
  end
  return line
end

local function read_ticket(text)
  local life, token, key = string.match(text or '', '^(%d+) (%d+) (.*)$')
  return key and {until_ms = tonumber(life), token = tonumber(token), key = key}
end

local function leave_line(id, lock_name, ticket)
  local line = line_of(id, lock_name)
  line.left[#line.left + 1], line.has_left[ticket] = ticket, true
end

-- The first in line that lives; nil if there is none. Dead ones before it leave. A key of another type is no line.
local function next_in_line(id, lock_name)
  local line, at = line_of(id, lock_name), 0
  while true do
    local front = redis.pcall('ZRANGE', line.queue, at, at + LOOK - 1)
    local tickets = #front > 0 and redis.pcall('HMGET', line.tickets, unpack(front)) or {}
    if front.err or tickets.err or #front == 0 then
      return nil
    end
    for n, ticket in ipairs(front) do
      if not line.has_left[ticket] then
        local one = read_ticket(tickets[n])
        if one and one.until_ms >= now_ms then
          one.ticket = ticket
          return one
        end
        leave_line(id, lock_name, ticket)
      end
    end
    at = at + LOOK
  end
end
