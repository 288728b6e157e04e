-- A plus sign before the token of a lock says that there may be a line before the slot.
local function is_waited_for(token)
  return token and string.byte(token) == 43
end
