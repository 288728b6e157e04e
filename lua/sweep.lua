-- Guarantee: each lock that ended by its date is told of as "expired" once, whoever sweeps and however often, and then
-- forgotten; the one that ended first is told of first. Its slot goes to the first in line, if there is a line.
-- KEYS: locks, expiry, events
-- ARGV: slot_prefix, lock_suffix, record_suffix, booking_prefix, most
-- Reply: now_us, told_of, next_ms
--   next_ms is when to sweep next: no lock ends before it; 0 if there is none
local locks, expiry = KEYS[1], KEYS[2]
local lapsed, last_token = {}, nil
-- include: clock
-- include: naming
-- include: events
-- include: availability
-- include: sign
-- include: held
-- include: queue
-- include: turns
-- include: lapsed

local found = redis.call('ZRANGEBYSCORE', expiry, '-inf', now_ms - 1, 'WITHSCORES', 'LIMIT', 0, ARGV[5])
local gone, early, told_of = lapsed_locks(found)
publish()
forget(gone, early)
write_lines()
local next_one = redis.call('ZRANGE', expiry, 0, 0, 'WITHSCORES')
return {now_us, told_of, tonumber(next_one[2]) or 0}
