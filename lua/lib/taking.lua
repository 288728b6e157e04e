-- A place in slot i for a booking by the one who gives this lock_key. The lock it has by that key is consumed.

-- What a lock's end is written to must be what it should be before the first write.
redis.call('ZCARD', expiry)

-- The resource of slot i; nil if not all that is read or changed after the first write is where it should be.
local function resource_of(i)
  return string.match(record_of(i), '^3%a%a %d+ %d+ %d+ [^\n]*\n([^\n]*)\n[^\n]*\n[^\n]*\n%d+ %d+\n')
end

-- Why this caller can't have the place, nil if it can; then until when another holds the slot.
local function refusal(i, lock_key, token)
  local record = record_of(i)
  local key, until_ms = lock_in_the_way(i)
  if not record then
    return redis.call('EXISTS', record_name(i)) == 1 and 'corrupt' or 'slot_not_found'
  elseif not resource_of(i) or not key_of(i) and redis.call('EXISTS', lock_name(i)) == 1 then
    return 'corrupt'  -- a lock of another type may be somebody's all the same
  end
  local tag = obstacle(record, key, lock_key)
  if not tag and key_of(i) and claim_on(i, lock_key, token) ~= 'yours' then
    tag = 'taken'  -- by a later lock of the same key
  end
  return tag, tag == 'taken' and until_ms
end

-- Returns what became of the lock: K if it was consumed, E if it had ended, N if there was no talk of one.
local function take(i, lock_key)
  count_bookings(i, 1, 0)
  lapse(i)
  if token_of(i) then
    redis.call('ZREM', expiry, ids[i])
    redis.call('HDEL', locks, ids[i])
  end
  if not key_of(i) then
    return lock_key == '' and 'N' or 'E'
  end
  redis.call('DEL', lock_name(i))
  return 'K'
end

-- After the booking was told of: the lock is gone, and the first in line gets the slot, if a place is left.
local function pass_on(i, lock_key)
  local turn
  if is_waited_for(tokens[first[i] + 1]) then
    turn = next_in_line(ids[i], lock_name(i))
    if turn and turn.key == lock_key then
      leave_line(ids[i], lock_name(i), turn.ticket)  -- it booked before it got its turn
    end
    turn = hand_over(ids[i], lock_name(i), record_of(i), token_of(i))
  end
  pass(i, turn)
end
