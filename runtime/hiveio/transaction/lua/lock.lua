-- Locks all aggregates of a call or none, where a lock that is the caller's already is extended; or gives them back,
-- and intents with them. One script for both, so that calls of one tick keep their order.
-- A free lock is anybody's, unless another one has waited for a turn or longer: then it is kept for the one that has
-- waited longest, while he goes on asking.
-- KEYS[1]  the scope's prefix of locks
-- ARGV     time to live (ms), time that a wish is remembered (ms), a turn (ms), then for each call: token, the time it
--          has waited (ms; -1: give them back), n, n aggregates
-- returns  {'', then for each call {1, wanted} or {0, an aggregate that is not to be had, ahead}}
-- wanted   1 if another one waits for one of them: it should get its turn
-- ahead    how many others have waited for that aggregate longer
local ttl, remembered, turn = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Since when the caller waits (if its wish is there), how many others do, how many of them longer, and whether it is
-- kept for one of those. Who asks no more is forgotten.
local function waiting(wishes, token, since)
  local found = redis.call('HGETALL', wishes)
  if #found == 0 then return nil, 0, 0, false end
  local mine, others, longer, kept = nil, {}, 0, false
  for k = 1, #found, 2 do
    local begun, seen = string.match(found[k + 1], '^(%d+) (%d+)$')
    begun, seen = tonumber(begun), tonumber(seen)
    if math.abs(now - seen) > remembered then redis.call('HDEL', wishes, found[k])
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
  local taken, ahead, wanted, mine = nil, 0, 0, {}
  for _, name in ipairs(names) do
    local lock = KEYS[1] .. ':lock:' .. name
    local holder = redis.call('GET', lock)
    if holder and holder ~= token and redis.call('PTTL', lock) > 2 * ttl then
      holder = false  -- the clock was set back since, and its holder may be gone
    end
    local begun, others, longer, kept = waiting(KEYS[1] .. ':wishes:' .. name, token, since)
    mine[name] = begun
    if others > 0 then wanted = 1 end
    if holder ~= token and (holder or kept) and (not taken or longer >= ahead) then taken, ahead = name, longer end
  end
  for _, name in ipairs(names) do
    local wishes = KEYS[1] .. ':wishes:' .. name
    if taken then
      redis.call('HSET', wishes, token, string.format('%d %d', math.min(since, mine[name] or since), now))
      redis.call('PEXPIRE', wishes, remembered)
    else
      redis.call('SET', KEYS[1] .. ':lock:' .. name, token, 'PX', ttl)
      if mine[name] then redis.call('HDEL', wishes, token) end
    end
  end
  return taken and {0, taken, ahead} or {1, wanted}
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
