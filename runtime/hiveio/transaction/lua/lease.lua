-- Gives a lease to one holder, and renews it for that one. It is a hint: two sessions may still overlap.
-- KEYS[1]  the watermark, which every instance learns in this way, with or without the lease and other work
-- ARGV     the lease, then for each call: holder, time to live (ms)
-- returns  {watermark or '', then for each call 1 (the caller holds the lease) or 0}
local lease, replies = ARGV[1], {redis.call('GET', KEYS[1]) or ''}
for i = 2, #ARGV, 2 do
  local holder = redis.call('GET', lease)
  if holder and holder ~= ARGV[i] and redis.call('PTTL', lease) > 2 * ARGV[i + 1] then
    holder = false  -- the clock was set back after that, and the holder may have ended
  end
  if not holder or holder == ARGV[i] then
    redis.call('SET', lease, ARGV[i], 'PX', ARGV[i + 1])
    replies[#replies + 1] = 1
  else
    replies[#replies + 1] = 0
  end
end
return replies
