-- Reads which processes have deadlines, first those whose first deadline is due first.
-- KEYS[1]  the watermark
-- ARGV     for each call: how many to pass over, how many to return
-- returns  {watermark or '', then for each call a list of process, when its first deadline is due, process, …}
local watermark = redis.call('GET', KEYS[1]) or ''
local generation = string.match(watermark, '^%d+|%d+|[^|]*|([^|]*)|')
local replies = {watermark}
for i = 1, #ARGV, 2 do
  local first, found = tonumber(ARGV[i]), {}
  if generation then
    local last = first + tonumber(ARGV[i + 1]) - 1
    found = redis.call('ZRANGE', KEYS[1] .. ':' .. generation .. ':processes', first, last, 'WITHSCORES')
  end
  replies[#replies + 1] = found
end
return replies
