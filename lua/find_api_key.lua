-- Guarantee: reads only. Tells which API key has this hash.
-- KEYS: api_keys
-- ARGV: per API key: hash
-- Reply: per API key: record
--   as in create_api_key, or nothing
return redis.call('HMGET', KEYS[1], unpack(ARGV))
