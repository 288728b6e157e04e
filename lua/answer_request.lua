-- Guarantee: a request's answer is kept and published in one step: what is kept has been published, and of two answers
-- the first is everybody's. What is not to be kept is published alone, and ends the claim of the one who gave it.
-- KEYS: per answer: answer
-- ARGV: per answer: owner, fingerprint, keep_ms, channel, text
--   keep_ms is 0 for what is not to be kept
-- Reply: per answer: tag, receivers
--   how many listened
-- Tags: published, earlier
local reply = {}
for i, name in ipairs(KEYS) do
  local owner, fingerprint, keep_ms, channel, text = unpack(ARGV, 5 * i - 4, 5 * i)
  local kept = redis.call('MGET', name)[1]
  local state, said, rest = string.match(kept or '', '^(%l+)\n(%x+)\n(.*)$')
  local tag, heard = 'published', nil
  if keep_ms == '0' then
    if kept == 'working\n' .. fingerprint .. '\n' .. owner then
      redis.call('DEL', name)
    end
  elseif state == 'answered' and said == fingerprint then
    tag = 'earlier'
    heard, text = string.match(rest, '^([^\n]*)\n(.*)$')
  elseif not state or said == fingerprint then
    redis.call('SET', name, 'answered\n' .. fingerprint .. '\n' .. channel .. '\n' .. text, 'PX', keep_ms)
  end
  -- Who heard the first answer needs no second one.
  reply[#reply + 1], reply[#reply + 2] = tag, heard == channel and 0 or redis.call('PUBLISH', channel, text)
end
return reply
