-- One step at a fence: open it for a token, or write on condition that it is open for this token.
--
-- KEYS[1] holds the last token that the fence was opened for; the other KEYS are those that are written.
-- ARGV[1] is the token; what follows are commands, each as the number of its words and the words. Without any,
-- the fence is opened.
--
-- The answer is {seen} where nothing was done: the token that the fence is open for, '' for none. Else it is
-- {token, answers}. Tokens are whole numbers of at most 2^53, which a Lua number has exactly; they are stored
-- and answered as they came, as `..` would round them.

local token, seen = ARGV[1], redis.call('GET', KEYS[1])

if seen and not string.find(seen, '^%d+$') then
    return redis.error_reply('ASYNCGUARD ' .. KEYS[1] .. ': expected a token, got ' .. seen)
end

if not ARGV[2] then
    if not seen or tonumber(seen) < tonumber(token) then
        redis.call('SET', KEYS[1], token)
        seen = token
    end
    return {seen, {}}
end

-- Not "newer than": one that the fence doesn't know was opened before the server lost data, and perhaps another
-- was opened besides.
if not seen or tonumber(seen) ~= tonumber(token) then
    return {seen or ''}
end

local answers, at = {}, 2
while ARGV[at] do
    local words = tonumber(ARGV[at])
    answers[#answers + 1] = redis.call(unpack(ARGV, at + 1, at + words))
    at = at + words + 1
end
return {token, answers}
