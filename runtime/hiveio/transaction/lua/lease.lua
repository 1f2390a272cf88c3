-- A lease of one holder: taken when free, renewed by its holder. A hint: sessions may overlap.
-- KEYS[1]  the lease
-- ARGV     for each call: holder, time to live (ms)
-- returns  {'', then for each call 1 (held) or 0}
local replies = {''}
for i = 1, #ARGV, 2 do
  local holder = redis.call('GET', KEYS[1])
  if not holder or holder == ARGV[i] then
    redis.call('SET', KEYS[1], ARGV[i], 'PX', ARGV[i + 1])
    replies[#replies + 1] = 1
  else
    replies[#replies + 1] = 0
  end
end
return replies
