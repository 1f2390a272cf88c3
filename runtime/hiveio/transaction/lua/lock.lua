-- Locks all aggregates of a call or none; a lock that is the caller's already is extended.
-- KEYS[1]  the scope's prefix of locks
-- ARGV     time to live (ms), time that a wish is remembered (ms), then for each call: token, n, n aggregates
-- returns  {'', then for each call {1, wanted} or {0, the aggregate that another one holds}}
-- wanted   1 if another one has asked for one of them meanwhile: it should get its turn
local ttl, remembered = ARGV[1], ARGV[2]
local replies, i = {''}, 3
while i <= #ARGV do
  local token, n, taken, wanted = ARGV[i], tonumber(ARGV[i + 1]), nil, 0
  for k = i + 2, i + 1 + n do
    local holder = redis.call('GET', KEYS[1] .. ':lock:' .. ARGV[k])
    if holder and holder ~= token then
      taken = ARGV[k]
      redis.call('SET', KEYS[1] .. ':wanted:' .. taken, token, 'PX', remembered)
    end
  end
  if taken then
    replies[#replies + 1] = {0, taken}
  else
    for k = i + 2, i + 1 + n do
      redis.call('SET', KEYS[1] .. ':lock:' .. ARGV[k], token, 'PX', ttl)
      local wish = redis.call('GET', KEYS[1] .. ':wanted:' .. ARGV[k])
      if wish and wish == token then redis.call('DEL', KEYS[1] .. ':wanted:' .. ARGV[k])
      elseif wish then wanted = 1 end
    end
    replies[#replies + 1] = {1, wanted}
  end
  i = i + 2 + n
end
return replies
