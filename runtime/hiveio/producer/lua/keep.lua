-- Keeps the answers of claimed Idempotency-Keys, or gives the keys back; only their claimant can.
-- KEYS[1]  prefix of the keys
-- ARGV     time to live (ms), then for each call: name, token, answer ('': give it back)
-- returns  {'', then for each call ''}
local replies, ttl = {''}, tonumber(ARGV[1])
for i = 2, #ARGV, 3 do
  local key, mine = KEYS[1] .. ARGV[i], 'P\n' .. ARGV[i + 1] .. '\n'
  local entry = redis.call('GET', key)
  if not entry or string.sub(entry, 1, #mine) == mine then
    if ARGV[i + 2] ~= '' then redis.call('SET', key, ARGV[i + 2], 'PX', ttl) else redis.call('DEL', key) end
  end
  replies[#replies + 1] = ''
end
return replies
