-- A lease of one holder: taken when free, renewed by its holder. A hint: sessions may overlap.
-- KEYS[1]  the watermark, which every instance hears of in this way, whether it has the lease and work or not
-- ARGV     the lease, then for each call: holder, time to live (ms)
-- returns  {watermark or '', then for each call 1 (held) or 0}
local lease, replies = ARGV[1], {redis.call('GET', KEYS[1]) or ''}
for i = 2, #ARGV, 2 do
  local holder = redis.call('GET', lease)
  if holder and holder ~= ARGV[i] and redis.call('PTTL', lease) > 2 * ARGV[i + 1] then
    holder = false  -- the clock was set back since, and its holder may be gone
  end
  if not holder or holder == ARGV[i] then
    redis.call('SET', lease, ARGV[i], 'PX', ARGV[i + 1])
    replies[#replies + 1] = 1
  else
    replies[#replies + 1] = 0
  end
end
return replies
