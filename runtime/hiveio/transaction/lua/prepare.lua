-- Phase one: the cache votes on transactions and stores their intents. It avoids void records and promises nothing.
-- KEYS[1]  the watermark
-- ARGV     the scope's prefix of locks, time to live of an intent (ms), then for each call: token, n, n * (aggregate, head)
-- returns  {watermark or '', then for each call 1 (yes) or an aggregate that has another head or another's intent}
local watermark = redis.call('GET', KEYS[1]) or ''
local generation = string.match(watermark, '^%d+|%d+|[^|]*|([^|]*)|')
local locks, ttl = ARGV[1], ARGV[2]
local replies, i = {watermark}, 3
while i <= #ARGV do
  local token, n, conflict = ARGV[i], tonumber(ARGV[i + 1]), nil
  for k = i + 2, i + 2 * n, 2 do
    local entry = generation and redis.call('GET', KEYS[1] .. ':' .. generation .. ':a:' .. ARGV[k])
    local head = entry and string.match(entry, '^%d+ (%S*)') or ''
    local key = locks .. ':intent:' .. ARGV[k]
    local intent = redis.call('GET', key)
    if intent and intent ~= token and redis.call('PTTL', key) > 2 * ttl then
      intent = false  -- the clock was set back after that, and the instance may have ended
    end
    if head ~= ARGV[k + 1] or (intent and intent ~= token) then conflict = ARGV[k] end
  end
  if not conflict then
    for k = i + 2, i + 2 * n, 2 do redis.call('SET', locks .. ':intent:' .. ARGV[k], token, 'PX', ttl) end
  end
  replies[#replies + 1] = conflict or 1
  i = i + 2 + 2 * n
end
return replies
