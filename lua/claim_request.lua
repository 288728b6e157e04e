-- Guarantee: of those who heard a request, one works on it at a time, for as long as its lease is renewed; once there is
-- an answer, everybody gets that one. A request that says something else under the same name is told apart.
-- KEYS: per answer: answer
-- ARGV: per answer: owner, fingerprint, lease_ms
-- Reply: per answer: tag, channel, text
--   where it was answered, the channel that heard it; where somebody works on it, the text is what is left of the lease
--   in ms
-- Tags: claimed, working, answered, other, corrupt
local reply = {}
for i, name in ipairs(KEYS) do
  local owner, fingerprint, lease_ms = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local mine = 'working\n' .. fingerprint .. '\n' .. owner
  local tag, channel, text = 'claimed', false, false
  if not redis.call('SET', name, mine, 'NX', 'PX', lease_ms) then
    local kept = redis.call('MGET', name)[1]
    local state, said, rest = string.match(kept or '', '^(%l+)\n(%x+)\n(.*)$')
    if kept == mine then
      redis.call('SET', name, mine, 'PX', lease_ms)
    elseif not state then
      tag = 'corrupt'
    elseif said ~= fingerprint then
      tag = 'other'
    elseif state == 'working' then
      tag, text = 'working', tostring(redis.call('PTTL', name))
    else
      tag = 'answered'
      channel, text = string.match(rest, '^([^\n]*)\n(.*)$')
    end
  end
  reply[#reply + 1], reply[#reply + 2], reply[#reply + 3] = tag, channel, text
end
return reply
