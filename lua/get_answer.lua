-- Guarantee: reads only. Gives the answer that is kept under a name.
-- KEYS: per answer: answer
-- ARGV: per answer:
-- Reply: per answer: text
--   or nothing
return redis.call('MGET', unpack(KEYS))
