-- What a caller with this lock_key, and this fencing token if it gives one, has to do with a lock, given as its key (false
-- where there is none) and its fencing token. A token that differs names an earlier lock of the same key: that one is
-- gone.
local function claim(key, had, lock_key, token)
  if not key then
    return 'gone'
  elseif key ~= lock_key then
    return 'taken'
  end
  return (token == '' or token == had or tonumber(token) == tonumber(had)) and 'yours' or 'gone'
end
