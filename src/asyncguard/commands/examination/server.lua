-- What `asyncguard doctor` asks besides the rules themselves.
--
-- KEYS are deleted. ARGV are commands, each as the number of its words and the words: which of them this user
-- may not run is answered, by their places. Nothing else is changed.

local denied, at, place = {}, 1, 0
while ARGV[at] do
    local words = tonumber(ARGV[at])
    if not redis.acl_check_cmd(unpack(ARGV, at + 1, at + words)) then
        denied[#denied + 1] = place
    end
    at, place = at + words + 1, place + 1
end
for _, key in ipairs(KEYS) do
    redis.call('DEL', key)
end
return denied
