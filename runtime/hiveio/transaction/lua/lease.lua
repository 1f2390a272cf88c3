-- Gives a lease to one holder, renews it for that one, and takes it back from that one. It is a hint: two sessions may
-- still overlap.
-- KEYS[1]  the watermark, which every instance learns in this way, with or without the lease and other work
-- ARGV     the lease, then for each call: holder, time to live (ms; 0: the holder gives it back)
-- returns  {watermark or '', then for each call who holds the lease after it, or ''}
local lease, replies = ARGV[1], {redis.call('GET', KEYS[1]) or ''}
for i = 2, #ARGV, 2 do
  local holder, ttl = redis.call('GET', lease), tonumber(ARGV[i + 1])
  if ttl == 0 then
    if holder == ARGV[i] then
      redis.call('DEL', lease)
      holder = false
    end
  else
    if holder and holder ~= ARGV[i] and redis.call('PTTL', lease) > 2 * ttl then
      holder = false  -- the clock was set back after that, and the holder may have ended
    end
    if not holder or holder == ARGV[i] then
      redis.call('SET', lease, ARGV[i], 'PX', ttl)
      holder = ARGV[i]
    end
  end
  replies[#replies + 1] = holder or ''
end
return replies
