-- Reads aggregates and command ids of one scope: a consistent cut at the watermark it returns.
-- KEYS[1]  the watermark, "offset|time|topic|generation|…"
-- ARGV     for each call: aggregate or '', command id or ''
-- returns  {watermark or '', then for each call {entry or false, id entry or false}}; without the last calls where the
--          answer becomes large
-- entry    "version head snapshot";  id entry  "offset:time:keyed"
local watermark = redis.call('GET', KEYS[1]) or ''
local generation = string.match(watermark, '^%d+|%d+|[^|]*|([^|]*)|')
local MOST = 1000000
local replies, size = {watermark}, 0
for i = 1, #ARGV, 2 do
  local entry, id = false, false
  if generation then
    if ARGV[i] ~= '' then entry = redis.call('GET', KEYS[1] .. ':' .. generation .. ':a:' .. ARGV[i]) end
    if ARGV[i + 1] ~= '' then id = redis.call('HGET', KEYS[1] .. ':' .. generation .. ':ids', ARGV[i + 1]) end
  end
  replies[#replies + 1] = {entry, id}
  size = size + (entry and #entry or 0)
  if size > MOST then break end
end
return replies
