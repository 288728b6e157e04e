-- Guarantee: reads only. Lists the API keys, in no order; one may come twice while others come and go.
-- KEYS: api_keys
-- ARGV: cursor, chunk
--   cursor is where the last call stopped, 0 at first
-- Reply: next_cursor, then per API key: hash, record
--   next_cursor is 0 at the end; records are those of create_api_key
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
return {found[1], unpack(found[2])}
