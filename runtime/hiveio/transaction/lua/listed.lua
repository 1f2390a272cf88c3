-- Reads what a part of the list of processes has.
-- KEYS[1]  the watermark
-- ARGV     for each call: where the part begins (it ends at the double of that), how many to pass over, how many to
--          return
-- returns  {watermark or '', then for each call a list of how many there are, name, place, name, …}
local watermark = redis.call('GET', KEYS[1]) or ''
local generation = string.match(watermark, '^%d+|%d+|[^|]*|([^|]*)|')
local replies = {watermark}
for i = 1, #ARGV, 3 do
  local found = {0}
  if generation then
    local key, low, high = KEYS[1] .. ':' .. generation .. ':processes', ARGV[i], '(' .. string.format('%.0f', 2 * ARGV[i])
    found = redis.call('ZRANGEBYSCORE', key, low, high, 'WITHSCORES', 'LIMIT', ARGV[i + 1], ARGV[i + 2])
    table.insert(found, 1, redis.call('ZCOUNT', key, low, high))
  end
  replies[#replies + 1] = found
end
return replies
