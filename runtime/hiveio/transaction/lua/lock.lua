-- Locks all aggregates of a call or none, and extends the locks that the caller has already; or releases locks together
-- with their intents. One script does both, so that the calls of one tick keep their order. Who releases a lock while
-- its records are under way leaves the last of them in <scope>:tip:<aggregate>, and the next holder waits for that.
-- Any instance gets a free lock, unless another one has waited for a turn or longer: then the lock is reserved for the
-- one that has waited longest, as long as it keeps asking. The hash <scope>:wishes:<aggregate> has those that wait.
-- KEYS[1]  the scope's prefix of locks
-- ARGV     time to live (ms), time that a waiter is remembered (ms), a turn (ms), then for each call: token, the time
--          that it has waited (ms; -1: release the locks), n, n aggregates, the transaction id of the caller's last
--          record or ''
-- returns  {'', then for each call {1, contended, the tips that are there} or {0, an aggregate that is locked,
--          waiters_ahead}}
-- contended      1 if another instance waits for one of them, which should get its turn
-- waiters_ahead  how many other instances have waited longer for that aggregate
local ttl, remembered, turn = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Returns the time since which the caller waits (if it does), how many others wait, how many of these have waited
-- longer, and whether the lock is reserved for one of those. A waiter that has stopped asking is forgotten.
local function look_up(waiters, token, started_at)
  local found = redis.call('HGETALL', waiters)
  if #found == 0 then return nil, 0, 0, false end
  local own, others, longer, reserved = nil, {}, 0, false
  for k = 1, #found, 2 do
    local waiting_since, asked_at = string.match(found[k + 1], '^(%d+) (%d+)$')
    waiting_since, asked_at = tonumber(waiting_since), tonumber(asked_at)
    if math.abs(now - asked_at) > remembered then redis.call('HDEL', waiters, found[k])
    elseif found[k] == token then own = waiting_since
    else others[#others + 1] = {waiting_since, found[k]} end
  end
  started_at = math.min(started_at, own or started_at)
  for _, other in ipairs(others) do
    if other[1] < started_at or (other[1] == started_at and other[2] < token) then
      longer = longer + 1
      reserved = reserved or now - other[1] >= turn
    end
  end
  return own, #others, longer, reserved
end

local function acquire(names, token, started_at)
  local busy, waiters_ahead, contended, own = nil, 0, 0, {}
  for _, name in ipairs(names) do
    local lock = KEYS[1] .. ':lock:' .. name
    local holder = redis.call('GET', lock)
    if holder and holder ~= token and redis.call('PTTL', lock) > 2 * ttl then
      holder = false  -- the clock was set back after that, and the holder may have ended
    end
    local waiting_since, others, longer, reserved = look_up(KEYS[1] .. ':wishes:' .. name, token, started_at)
    own[name] = waiting_since
    if others > 0 then contended = 1 end
    if holder ~= token and (holder or reserved) and (not busy or longer >= waiters_ahead) then
      busy, waiters_ahead = name, longer
    end
  end
  for _, name in ipairs(names) do
    local waiters = KEYS[1] .. ':wishes:' .. name
    if busy then
      redis.call('HSET', waiters, token, string.format('%d %d', math.min(started_at, own[name] or started_at), now))
      redis.call('PEXPIRE', waiters, remembered)
    else
      redis.call('SET', KEYS[1] .. ':lock:' .. name, token, 'PX', ttl)
      if own[name] then redis.call('HDEL', waiters, token) end
    end
  end
  if busy then return {0, busy, waiters_ahead} end
  local reply = {1, contended}
  for _, name in ipairs(names) do reply[#reply + 1] = redis.call('GET', KEYS[1] .. ':tip:' .. name) or nil end
  return reply
end

local function release(names, token, tip)  -- releases only the locks that the caller owns
  for _, name in ipairs(names) do
    local lock, intent = KEYS[1] .. ':lock:' .. name, KEYS[1] .. ':intent:' .. name
    if redis.call('GET', intent) == token then redis.call('DEL', intent) end
    if redis.call('GET', lock) == token then
      redis.call('DEL', lock)
      if tip ~= '' then redis.call('SET', KEYS[1] .. ':tip:' .. name, tip, 'PX', ttl) end
    end
  end
  return {1, 0}
end

local replies, i = {''}, 4
while i <= #ARGV do
  local token, waited, n = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local names, tip = {unpack(ARGV, i + 3, i + 2 + n)}, ARGV[i + 3 + n]
  replies[#replies + 1] = waited < 0 and release(names, token, tip) or acquire(names, token, now - waited)
  i = i + 4 + n
end
return replies
