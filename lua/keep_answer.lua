-- Guarantee: of the answers that are given under one name, the first is kept until its time is over, and everybody gets
-- that one.
-- KEYS: per answer: answer
-- ARGV: per answer: text, keep_ms
-- Reply: per answer: tag, text
--   the text is only replied where it was kept before
-- Tags: kept, earlier, corrupt
local reply = {}
for i, name in ipairs(KEYS) do
  local tag, text = 'kept', false
  if not redis.call('SET', name, ARGV[2 * i - 1], 'NX', 'PX', ARGV[2 * i]) then
    text = redis.call('MGET', name)[1]
    tag = text and 'earlier' or 'corrupt'
  end
  reply[#reply + 1], reply[#reply + 2] = tag, text
end
return reply
