-- Lets the callers of these slots, which others hold, into the line, or keeps them there: their tickets live on from
-- now. Who comes first in the call came first. Returns those whose line can't be: a foreign key stands in its place.
local function join(joining)
  local signs, foreign = {}, {}
  for order, i in ipairs(joining) do
    local line, lock_key, ticket = line_of(ids[i], lock_name(i)), argument(i, 2), argument(i, 4)
    local until_ms = now_ms + TICKET_MS
    local kept = redis.pcall('HSET', line.tickets, ticket, ticket_text(until_ms, 0, lock_key))
    local queued = type(kept) == 'number' and redis.pcall('ZADD', line.queue, 'NX', now_us + order, ticket)
    if type(queued) == 'number' then
      redis.call('PEXPIREAT', line.queue, until_ms)
      redis.call('PEXPIREAT', line.tickets, until_ms)
      -- Where there is no lock the line was there before, and its sign.
      if key_of(i) and not is_waited_for(tokens[first[i] + 1]) then
        signs[#signs + 1], signs[#signs + 2] = ids[i], string.format('+%d %d', token_of(i), end_of(i))
      end
    else
      foreign[#foreign + 1] = i
    end
  end
  if #signs > 0 then
    redis.call('HSET', locks, unpack(signs))
  end
  return foreign
end
