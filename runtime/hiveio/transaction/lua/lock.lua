-- Locks all aggregates of a call or none, where a lock that is the caller's already is extended; or gives them back,
-- and intents with them. One script for both, so that calls of one tick keep their order.
-- A free lock is anybody's, unless another instance has waited for a turn or longer: then it is kept for the one that
-- has waited longest, while that one goes on asking. Who waits is in the hash <scope>:wishes:<aggregate>.
-- KEYS[1]  the scope's prefix of locks
-- ARGV     time to live (ms), time that a waiter is remembered (ms), a turn (ms), then for each call: token, the time it
--          has waited (ms; -1: give them back), n, n aggregates
-- returns  {'', then for each call {1, contended} or {0, an aggregate that is locked, waiters_ahead}}
-- contended      1 if another instance waits for one of them: it should get its turn
-- waiters_ahead  how many others have waited for that aggregate longer
local ttl, remembered, turn = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Since when the caller waits (if it does), how many others do, how many of them longer, and whether the lock is kept
-- for one of those. Who asks no more is forgotten.
local function look_up(waiters, token, since)
  local found = redis.call('HGETALL', waiters)
  if #found == 0 then return nil, 0, 0, false end
  local mine, others, longer, kept = nil, {}, 0, false
  for k = 1, #found, 2 do
    local begun, seen = string.match(found[k + 1], '^(%d+) (%d+)$')
    begun, seen = tonumber(begun), tonumber(seen)
    if math.abs(now - seen) > remembered then redis.call('HDEL', waiters, found[k])
    elseif found[k] == token then mine = begun
    else others[#others + 1] = {begun, found[k]} end
  end
  since = math.min(since, mine or since)
  for _, other in ipairs(others) do
    if other[1] < since or (other[1] == since and other[2] < token) then
      longer = longer + 1
      kept = kept or now - other[1] >= turn
    end
  end
  return mine, #others, longer, kept
end

local function acquire(names, token, since)
  local busy, waiters_ahead, contended, mine = nil, 0, 0, {}
  for _, name in ipairs(names) do
    local lock = KEYS[1] .. ':lock:' .. name
    local holder = redis.call('GET', lock)
    if holder and holder ~= token and redis.call('PTTL', lock) > 2 * ttl then
      holder = false  -- the clock was set back since, and its holder may be gone
    end
    local begun, others, longer, kept = look_up(KEYS[1] .. ':wishes:' .. name, token, since)
    mine[name] = begun
    if others > 0 then contended = 1 end
    if holder ~= token and (holder or kept) and (not busy or longer >= waiters_ahead) then
      busy, waiters_ahead = name, longer
    end
  end
  for _, name in ipairs(names) do
    local waiters = KEYS[1] .. ':wishes:' .. name
    if busy then
      redis.call('HSET', waiters, token, string.format('%d %d', math.min(since, mine[name] or since), now))
      redis.call('PEXPIRE', waiters, remembered)
    else
      redis.call('SET', KEYS[1] .. ':lock:' .. name, token, 'PX', ttl)
      if mine[name] then redis.call('HDEL', waiters, token) end
    end
  end
  return busy and {0, busy, waiters_ahead} or {1, contended}
end

local function release(names, token)  -- by its owner only
  for _, name in ipairs(names) do
    for _, kind in ipairs({':lock:', ':intent:'}) do
      local key = KEYS[1] .. kind .. name
      if redis.call('GET', key) == token then redis.call('DEL', key) end
    end
  end
  return {1, 0}
end

local replies, i = {''}, 4
while i <= #ARGV do
  local token, waited, n = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local names = {unpack(ARGV, i + 3, i + 2 + n)}
  replies[#replies + 1] = waited < 0 and release(names, token) or acquire(names, token, now - waited)
  i = i + 3 + n
end
return replies
