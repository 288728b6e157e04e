-- Guarantee: an API key is known by its hash alone, and registered once: who asks for it again gets what is there.
-- KEYS: api_keys
-- ARGV: per API key: hash, kind, name
--   kind is P for public, S for secret
-- Reply: per API key: record
--   a record is 1<P|S> created_ms name; the leading 1 is the format's version
local api_keys = KEYS[1]
-- include: clock

local hashes = {}
for at = 1, #ARGV, 3 do
  hashes[#hashes + 1] = ARGV[at]
end
local records = redis.call('HMGET', api_keys, unpack(hashes))

local fields = {}
for i, hash in ipairs(hashes) do
  if not records[i] then
    records[i] = '1' .. ARGV[3 * i - 1] .. ' ' .. string.format('%.0f', now_ms) .. ' ' .. ARGV[3 * i]
    fields[#fields + 1], fields[#fields + 2] = hash, records[i]
  end
end
if #fields > 0 then
  redis.call('HSET', api_keys, unpack(fields))
end
return records
