-- Who gets a slot from the line before it. Decided first, written after all else.
local TICKET_MS = 3000
local turns = {}

-- Gives a slot whose lock ends here to the first in line, for as long as its ticket lives; nil if nobody gets it. Whose
-- turn it was has had it. Where nobody can lock the slot, those in line are told so when they ask, and leave.
local function hand_over(id, lock_name, record, ended)
  local closed, lockable = nil, nil
  if record then
    closed, lockable = unbookable(record)
  end
  turns[id] = nil
  if closed or lockable == 'N' then
    return nil
  end
  local turn = next_in_line(id, lock_name)
  if turn and turn.token == ended then
    leave_line(id, lock_name, turn.ticket)
    turn = next_in_line(id, lock_name)
  end
  if turn then
    last_token = math.max((last_token or tonumber(redis.call('HGET', locks, '')) or 0) + 1, now_us)
    turn.token, turn.name = last_token, lock_name
    turns[id] = turn
    tell('locked', id, record, string.format('%d', turn.until_ms), string.format('%d', turn.token), turn.ticket)
  end
  return turn
end

local function ticket_text(until_ms, token, lock_key)
  return string.format('%.0f %.0f ', until_ms, token) .. lock_key
end

local function write_lines()
  for id, line in pairs(lines) do
    for at = 1, #line.left, 1000 do
      local some = {unpack(line.left, at, math.min(at + 999, #line.left))}
      redis.call('ZREM', line.queue, unpack(some))
      redis.call('HDEL', line.tickets, unpack(some))
    end
    local turn = turns[id]
    if turn then
      redis.call('SET', turn.name, turn.key, 'PXAT', turn.until_ms)
      redis.call('HSET', locks, '', last_token, id, string.format('+%d %d', turn.token, turn.until_ms))
      redis.call('ZADD', expiry, 'LT', turn.until_ms, id)
      redis.call('HSET', line.tickets, turn.ticket, ticket_text(turn.until_ms, turn.token, turn.key))
    end
  end
end
