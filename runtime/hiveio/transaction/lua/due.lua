-- Reads which processes have deadlines, first those whose first deadline is due first.
-- KEYS[1]  the watermark
-- ARGV     for each call: how many to pass over, how many to return, the time by which those to count are due
-- returns  {watermark or '', then for each call a list of how many are due, process, when its first deadline is due,
--          process, …}
local watermark = redis.call('GET', KEYS[1]) or ''
local generation = string.match(watermark, '^%d+|%d+|[^|]*|([^|]*)|')
local replies = {watermark}
for i = 1, #ARGV, 3 do
  local first, found = tonumber(ARGV[i]), {0}
  if generation then
    local key, last = KEYS[1] .. ':' .. generation .. ':processes', first + tonumber(ARGV[i + 1]) - 1
    found = redis.call('ZRANGE', key, first, last, 'WITHSCORES')
    table.insert(found, 1, redis.call('ZCOUNT', key, '-inf', ARGV[i + 2]))
  end
  replies[#replies + 1] = found
end
return replies
