-- Takes packets out of the mailbox of an instance.
-- KEYS[1]  the mailbox
-- ARGV     for each call the most packets
-- returns  {'', then for each call a list of packets}
-- A packet that was taken by a call whose answer is lost is lost, like any other.
local replies = {''}
for i = 1, #ARGV do
  local most = tonumber(ARGV[i])
  replies[#replies + 1] = redis.call('LRANGE', KEYS[1], 0, most - 1)
  redis.call('LTRIM', KEYS[1], most, -1)
end
return replies
