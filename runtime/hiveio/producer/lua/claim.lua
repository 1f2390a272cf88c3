-- Claims Idempotency-Keys, or says what is known of them.
-- KEYS[1]  prefix of the keys
-- ARGV     time to live (ms), then for each call: name, token, hash of the request
-- returns  {'', then for each call '' (it is the token's) or {entry, its age (ms)}}
local replies, ttl = {''}, tonumber(ARGV[1])
for i = 2, #ARGV, 3 do
  local key, mine = KEYS[1] .. ARGV[i], 'P\n' .. ARGV[i + 1] .. '\n' .. ARGV[i + 2]
  local entry = redis.call('GET', key)
  if not entry then redis.call('SET', key, mine, 'PX', ttl) end
  if not entry or entry == mine then
    replies[#replies + 1] = ''
  else
    replies[#replies + 1] = {entry, ttl - redis.call('PTTL', key)}
  end
end
return replies
