-- What `locks` has of a slot that is locked: the fencing token, after a plus sign perhaps (see sign), a space, and the end
-- of the lock in ms.
local HELD = '^(%+?%d+) (%d+)$'
