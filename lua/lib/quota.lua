-- How many live locks the holder of a quota has. Its hash names those that were made under the quota, and nothing but a
-- lock writes it: an unlock, a date that passed or a deleted slot leave an entry behind. So entries are an upper bound.
-- Who has as many as its quota allows is looked at closely, and what has ended is forgotten.
-- All of it is made for the first quota of a call: a call without one has nothing of it.
local function new_quotas()
  local longest_ms, whole, slot_prefix, lock_suffix = tonumber(ARGV[5]), ARGV[7] == 'all', ARGV[1], ARGV[2]
  local holders, quotas = {}, {}

  local function holder_of(name)
    local holder = holders[name]
    if not holder then
      -- A key of another type must fail its own request, and not its neighbours.
      local entries = redis.pcall('HLEN', name)
      holder = {count = type(entries) == 'number' and entries, made = 0, first_end = math.huge, ended = {}, fields = {}}
      holders[name] = holder
    end
    return holder
  end

  -- An entry lives while its slot has the same fencing token and its lock is there; however long it was extended.
  local function look_closely(name, holder)
    holder.looked, holder.count = true, holder.made
    local entries, slots, names, given = redis.call('HGETALL', name), {}, {}, {}
    for at = 1, #entries, 2 do
      slots[#slots + 1], given[#given + 1] = entries[at], entries[at + 1]
      names[#names + 1] = slot_prefix .. entries[at] .. lock_suffix
    end
    if #slots == 0 then
      return
    end
    local held = redis.call('HMGET', locks, unpack(slots))
    local keys = redis.call('MGET', unpack(names))
    for at, slot in ipairs(slots) do
      local token, until_ms = string.match(held[at] or '', HELD)
      if keys[at] and token and tonumber(token) == tonumber(given[at]) then
        holder.count = holder.count + 1
        holder.first_end = math.min(holder.first_end, tonumber(until_ms))
      else
        holder.ended[#holder.ended + 1] = slot
      end
    end
  end

  -- What becomes of a lock that may be made, or made again, under this quota: its tag, and the first end of the
  -- holder's locks if it has too many.
  function quotas.count_in(quota, tag, until_ms)
    local most, name = string.match(quota, '^(%d+) (.*)$')
    local holder = holder_of(name)
    most = tonumber(most)
    if tag ~= 'locked' then
      return tag
    elseif not holder.count then
      return 'corrupt'
    end
    if holder.count >= most and not holder.looked then
      look_closely(name, holder)
    end
    if holder.count < most then
      holder.count, holder.made = holder.count + 1, holder.made + 1
      if not whole then
        holder.first_end = math.min(holder.first_end, until_ms)
      end
      return 'locked'
    elseif whole and holder.made >= most then
      return 'too_many', 0
    end
    return 'too_many', holder.first_end
  end

  -- Nobody can tell whether this was done, so it may be done for a call that is refused, too.
  function quotas.forget_ended()
    for name, holder in pairs(holders) do
      if #holder.ended > 0 then
        redis.call('HDEL', name, unpack(holder.ended))
      end
    end
  end

  function quotas.write(granted, granted_count)
    for n = 1, granted_count do
      local i = granted[n]
      local _, quota = read_until(argument(i, 3))
      if quota then
        local fields = holders[string.match(quota, ' (.*)$')].fields
        fields[#fields + 1], fields[#fields + 2] = ids[i], tokens[first[i] + 1]
      end
    end
    for name, holder in pairs(holders) do
      if #holder.fields > 0 then
        redis.call('HSET', name, unpack(holder.fields))
      end
      -- Beyond the end of every lock that the holder makes or prolongs here, and never sooner than before: engines may
      -- differ in their longest lock.
      if holder.count and redis.call('PTTL', name) < longest_ms then
        redis.call('PEXPIREAT', name, now_ms + longest_ms)
      end
    end
  end

  return quotas
end
