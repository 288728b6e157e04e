-- Forgets locks that ended by their date. Each call that adds n locks sweeps up to 2n, so what is left behind
-- can't pile up, with no process in the background. Nothing waits for it: a lock is live as long as its key is.
local function sweep(limit)
  local lapsed = redis.call('ZRANGEBYSCORE', expiry, '-inf', now_ms - 1, 'LIMIT', 0, limit)
  if #lapsed > 0 then
    redis.call('ZREM', expiry, unpack(lapsed))
    redis.call('HDEL', locks, unpack(lapsed))
  end
end
