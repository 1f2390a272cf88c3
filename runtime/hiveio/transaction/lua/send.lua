-- Puts packets into the mailbox of an instance. They may be lost with Redis, or be there twice.
-- KEYS[1]  the mailbox
-- ARGV     the models and commands that the instance has to have ('': the packets have none), the most packets that may
--          wait, after how long (ms) they are dropped, then each packet
-- returns  {'', then for each packet 1 (it was put there) or 0}
local same, most, replies = ARGV[1], tonumber(ARGV[2]), {''}
local open = same == '' or redis.call('GET', KEYS[1] .. ':open') == same
local before = redis.call('LLEN', KEYS[1])
local length = before
for i = 4, #ARGV do
  local put = 0
  if open and length < most then
    length = redis.call('RPUSH', KEYS[1], ARGV[i])
    put = 1
  end
  replies[#replies + 1] = put
end
if length > before then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return replies
