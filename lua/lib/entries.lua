-- The entries of the indexes that are read in the order of their texts: what is looked for, a date in ms, an id.
-- A line feed stands below every character that an id may have, and a date counted from the year 1 has no sign: both
-- make the order of texts that of dates.
local function date_part(ms)
  return string.format('%015.0f', ms + 62135596800000)
end

local function entry(owner, ms, id)
  return owner .. '\n' .. date_part(ms) .. '\n' .. id
end

local function id_in(text)
  return string.match(text, '\n.*\n(.*)$')
end
