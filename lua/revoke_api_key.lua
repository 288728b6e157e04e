-- Guarantee: an API key goes at once and for good. One that is gone already stays so.
-- KEYS: api_keys
-- ARGV: per API key: key_id
--   which is how its hash begins
-- Reply: per API key: tag
-- Tags: revoked, not_found
local api_keys = KEYS[1]
local hashes, revoked, reply = redis.call('HKEYS', api_keys), {}, {}
for i, key_id in ipairs(ARGV) do
  reply[i] = 'not_found'
  for _, hash in ipairs(hashes) do
    if string.sub(hash, 1, #key_id) == key_id then
      reply[i] = 'revoked'
      revoked[#revoked + 1] = hash
    end
  end
end
if #revoked > 0 then
  redis.call('HDEL', api_keys, unpack(revoked))
end
return reply
