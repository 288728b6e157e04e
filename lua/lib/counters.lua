-- Adds these to the active and the cancelled bookings of slot i.
local function count_bookings(i, active, cancelled)
  local record = records[ids[i]]
  if record then
    record = string.gsub(record, '^(1%a%a %d+) (%d+) (%d+)', function(head, now_active, now_cancelled)
      return string.format('%s %d %d', head, now_active + active, now_cancelled + cancelled)
    end, 1)
    records[ids[i]] = record
    redis.call('SET', record_name(i), record)
  end
end
