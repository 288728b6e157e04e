-- Adds these to the active and the cancelled bookings of slot i. One that was lost and registered again does not count
-- the bookings it had: it never gets below 0, which would be a record that nobody can read.
local function count_bookings(i, active, cancelled)
  local record = record_of(i)
  if record then
    record = string.gsub(record, '^(3%a%a) (%d+) (%d+)', function(head, now_active, now_cancelled)
      return string.format('%s %d %d', head, math.max(0, now_active + active),
        math.max(0, now_cancelled + cancelled))
    end, 1)
    keep_record(i, record)
    redis.call('SET', record_name(i), record)
  end
end
