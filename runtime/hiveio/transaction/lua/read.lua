-- Reads aggregates and command ids of one scope, all as they are at the watermark that it returns.
-- KEYS[1]  the watermark, "offset|time|topic|generation|…"
-- ARGV     [1] the most bytes of the answer, then for each call: n, n * (aggregate or '', command id or '')
-- returns  {watermark or '', then for each call a list of {entry or false, id entry or false}}; an answer
--          that would be larger leaves out the last pairs of a call (but not its first) and the last calls
-- entry    "version head snapshot";  id entry  "offset:time:keyed"
local watermark = redis.call('GET', KEYS[1]) or ''
local generation = string.match(watermark, '^%d+|%d+|[^|]*|([^|]*)|')
local most = tonumber(ARGV[1])
local replies, i, size = {watermark}, 2, 0
while i <= #ARGV and size <= most do
  local n, found = tonumber(ARGV[i]), {}
  for k = i + 1, i + 2 * n, 2 do
    if size > most and #found > 0 then break end
    local entry, id = false, false
    if generation then
      if ARGV[k] ~= '' then entry = redis.call('GET', KEYS[1] .. ':' .. generation .. ':a:' .. ARGV[k]) end
      if ARGV[k + 1] ~= '' then id = redis.call('HGET', KEYS[1] .. ':' .. generation .. ':ids', ARGV[k + 1]) end
    end
    found[#found + 1] = {entry, id}
    size = size + (entry and #entry or 0)
  end
  replies[#replies + 1] = found
  i = i + 1 + 2 * n
end
return replies
