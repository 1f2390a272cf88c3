-- Gives locks back, and intents with them; only their owner can.
-- KEYS[1]  the scope's prefix of locks
-- ARGV     for each call: token, n, n aggregates
-- returns  {'', then for each call the number of locks given back}
local replies, i = {''}, 1
while i <= #ARGV do
  local token, n, count = ARGV[i], tonumber(ARGV[i + 1]), 0
  for k = i + 2, i + 1 + n do
    for _, kind in ipairs({':lock:', ':intent:'}) do
      local key = KEYS[1] .. kind .. ARGV[k]
      if redis.call('GET', key) == token then count = count + redis.call('DEL', key) end
    end
  end
  replies[#replies + 1] = count
  i = i + 2 + n
end
return replies
