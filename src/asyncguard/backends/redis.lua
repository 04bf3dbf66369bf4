-- The rules of asyncguard.admission, as Lua for Redis 7.0 and Valkey 8 or newer.
--
-- How to read this. This is ONE script, and each run of it is one operation on one guard: an atomic step.
-- KEYS[1] is the guard's base key, such as `asyncguard:{namespace/guard}`. All other keys begin with it, so
-- that a guard with all its partitions is in one hash slot. ARGV is, for each operation,
--
--     1  the operation's name: those are known for which there is a function `do_<name>`
--     2  now, in microseconds since 1970; "": the server's own clock
--     3  the client that asks: what it has decided upon by this step it reads in the answer
--     4  PUBLISH, or in a cluster SPUBLISH: how other clients are told
--     5  the guard's rules as its client declares them, as JSON:
--        [revision, limit, max_waiting, order, max_keys, [n, per, burst], microseconds between grants]
--     6  what the operation needs, in the order in which its function takes it
--
-- The answer is {more, due, standing, rows, decided, now}: `more` are operations to be sent at once, as this step
-- has done all that one may do (each is a list, from the name on, without what is in ARGV 2 to 5); `due` is the
-- microsecond at which the guard next moves by time alone; `standing` are the rules that stand, where they
-- aren't those in ARGV[5]; `rows` is what the caller asked for, and `decided` is what besides was decided; `now` is
-- the moment of the step, as no client's clock is the server's.
-- A row is JSON: [id, state, arrival, granted, ended, reason, wait, waiting, limit], all of it strings.
--
-- Moments are whole microseconds since 1970, which a Lua number has exactly. Durations of which means are taken
-- are nanoseconds, as in asyncguard.admission, so that sums and means come to the same.
-- Beware: `..` and cjson write 14 digits of a number, and moments have 16: see `digits`.
--
-- What is stored, after the base key:
--
--     :g                STRING  the guard, packed: its rules, what an operator set, statistics
--     :c                HASH    how many were refused, by reason
--     :r                STRING  the last thousand waits and holds: a ring of pairs of doubles
--     :k                ZSET    the keys in use, in alphabetical order
--     :i                ZSET    those of them that nobody uses, by when they may be deleted
--     :x                ZSET    ids of all tickets that hold or wait, by the end of their leases
--     :t:<id>           STRING  one of these tickets, packed; or a tombstone, until it expires by itself
--     :p:<key>          STRING  a partition, packed; the guard's own has an empty key
--     :q:<key>          ZSET    who waits there (<arrival><id>), by their scores
--     :l:<key>          ZSET    ids of those who wait for several permits, by how many
--   and in fair order
--     :q:<key>:<tenant> ZSET    who of a tenant waits
--     :f:<key>          HASH    the tenants, packed
--     :n:<key>          ZSET    tenants that wait (<arrival of the first><tenant>), by their tags
--     :w:<key>          ZSET    the same (<arrival of the last><tenant>), by how many wait per share
--     :b:<key>          ZSET    tenants that have nothing here (<born><tenant>), by their tags
--
-- Keys and tenants come percent-encoded. Nothing here looks at more than some hundred of anything; where more
-- is to be done, `more` says so. `inspect` alone reads all that there is.
--
-- A server that is full refuses the first command that takes memory, and once a script has written anything,
-- none. So each step either begins with what frees memory, as leaving does, or has done nothing yet.

local MOST_GRANTS = 500         -- tickets that one step grants
local MOST_EXPIRED = 100        -- leases that one step ends
local MOST_PARTITIONS = 100     -- partitions that one step makes follow new rules
local MOST_IDLE = 20            -- partitions that one step deletes
local SOME = 64                 -- tenants that are looked at for a ticket's place
local DEBTS = 64                -- tenants with nothing here that are remembered, beside two for each that waits
local RECENT = 1000             -- waits and holds that are remembered
local BATCH, ENOUGH = 16, 5     -- holds that move the mean, and that make the first
local ALL = 2 ^ 40              -- permits that are held while one ticket has them all

local call = redis.call
local rules = {}                -- all functions: each run defines them anew, and locals would take half as long again
local base, operation, given, client, ring, declared = KEYS[1], unpack(ARGV, 1, 5)

local now
local guard                     -- what is stored in :g
local partitions = {}           -- those that this step has looked at, by key
local decided, told = {}, {}    -- rows of this step, all of them and by client
local more = {}
local due
local grants = MOST_GRANTS
local fetched                   -- what was read at once, until anything is written
local dead_remain = false       -- whether more leases have ended than this step could see to

-- Each run defines its functions anew, which takes a while. So most of them are defined only once one of them is
-- needed, in two lots, whose text isn't indented.
local lots = {}
setmetatable(rules, {__index = function(_, name)
    local define = table.remove(lots, 1)
    if define then
        define()
        return rules[name]
    end
end})

-- === 1. Reading and writing =======================================================================

-- Write a moment: `..` would round it.
function rules.digits(moment)
    return string.format('%.0f', moment)
end

-- Take a number that came as text; `none` is what it is where it came empty.
function rules.number(what, text, none)
    if text == '' and none ~= nil then
        return none
    end
    local value = tonumber(text)
    if not value then
        rules.bad(what, 'a number', text)
    end
    return value
end

-- What is stored at a key; the keys that most steps need were fetched at once, before anything was written.
function rules.get(key)
    local value = fetched and fetched[key]
    if value == nil then
        return call('GET', key)
    end
    return value
end

-- Fetch at once what an operation on one ticket needs.
function rules.fetch(key, id)
    if string.find(id, '[^%w.-]') then
        rules.bad('id', 'letters, digits, dots and dashes', id)
    end
    local names = {base .. ':g', base .. ':p:' .. key, base .. ':t:' .. id}
    local values = call('MGET', unpack(names))
    fetched = {[names[1]] = values[1], [names[2]] = values[2], [names[3]] = values[3]}
end

-- Read a ticket that holds or waits; else nil, and its tombstone {until, state, reason, row} if there is one.
function rules.read_ticket(id)
    local packed = rules.get(base .. ':t:' .. id)
    if not packed then
        return nil
    end
    local v = cmsgpack.unpack(packed)
    if type(v[1]) == 'number' then
        return nil, v[1] > now and v or nil
    end
    return {
        id = id,
        key = v[1], state = v[2], permits = v[3], arrival = v[4], granted = v[5], priority = v[6],
        lease = v[7], tenant = v[8], share = v[9], charged = v[10], label = v[11], owner = v[12],
    }
end

function rules.write_ticket(ticket)
    fetched = nil
    call('SET', base .. ':t:' .. ticket.id, cmsgpack.pack({
        ticket.key, ticket.state, ticket.permits, ticket.arrival, ticket.granted, ticket.priority,
        ticket.lease, ticket.tenant, ticket.share, ticket.charged, ticket.label, ticket.owner,
    }))
end

-- Write what was decided about a ticket, for its client.
function rules.row_of(ticket)
    local outlook, wait, waiting, limit = ticket.outlook, '', '', ''
    if outlook then
        wait = outlook.wait and string.format('%.17g', outlook.wait) or ''
        waiting, limit = rules.digits(outlook.waiting), rules.digits(outlook.limit)
    end
    return string.format(
        '["%s","%s","%.0f","%.0f","%.0f","%s","%s","%s","%s"]',
        ticket.id, ticket.state, ticket.arrival or 0, ticket.granted or 0, ticket.ended or 0, ticket.reason or '',
        wait, waiting, limit
    )
end

-- === 2. The guard, and its partitions =============================================================

-- What is stored of a guard, beside what it was declared with:
--
--     version            counts the changes that all partitions have to follow
--     floor              the last moment at which a deleted partition may have granted
--     seen, ahead        the last moment noted; how far the guard is ahead of the server's clock
--     ended, finished    tickets that held and hold no more; those of them whose work ended by itself
--     batch, batch_ns    holds that are not in the mean yet, and their sum
--     mean               nanoseconds; 0: not yet
--
-- and of a partition:
--
--     held, holders      permits held, and tickets that hold
--     since, since_then  the first grant since nobody held; the sum of the holders' grants, from there
--     waiting            tickets that wait; `beyond`: permits that they want beyond one each; `exclusive`: how
--                        many of them want all
--     buried             when the last tombstone ends
--     idle               from when on it may be deleted; "": it is in use
--     virtual            fair order's V

function rules.read_guard()
    local packed = rules.get(base .. ':g')
    if packed then
        local v = cmsgpack.unpack(packed)
        guard = {
            declared = v[1], revision = v[2], limit = v[3], max_waiting = v[4], order = v[5], max_keys = v[6],
            pace = v[7], burst = v[8], override = v[9], paused = v[10], version = v[11], floor = v[12],
            seen = v[13], ahead = v[14], ended = v[15], finished = v[16], batch = v[17], batch_ns = v[18],
            mean = v[19],
        }
    else
        guard = {
            override = '', paused = 0, version = 0, floor = 0, seen = now, ahead = 0, ended = 0, finished = 0,
            batch = 0, batch_ns = 0, mean = 0,
        }
        rules.adopt(declared)
    end
    -- Where the server's clock was set back the guard's goes on: no lease gets longer, no pace stands still.
    now = now + guard.ahead
    if now < guard.seen then
        guard.ahead, now, guard.changed = guard.ahead + guard.seen - now, guard.seen, true
    end
end

function rules.write_guard()
    call('SET', base .. ':g', cmsgpack.pack({
        guard.declared, guard.revision, guard.limit, guard.max_waiting, guard.order, guard.max_keys,
        guard.pace, guard.burst, guard.override, guard.paused, guard.version, guard.floor, guard.seen,
        guard.ahead, guard.ended, guard.finished, guard.batch, guard.batch_ns, guard.mean,
    }))
end

-- Read a partition as it is stored; nil where there is none.
function rules.read_partition(key)
    local packed = rules.get(base .. ':p:' .. key)
    if not packed then
        return nil
    end
    local v = cmsgpack.unpack(packed)
    return {
        key = key, stored = true,
        order = v[1], version = v[2], override = v[3], paused = v[4], held = v[5], holders = v[6],
        since = v[7], since_then = v[8], waiting = v[9], beyond = v[10], exclusive = v[11],
        next_grant = v[12], last_arrival = v[13], tat = v[14], buried = v[15], idle = v[16], virtual = v[17],
    }
end

function rules.write_partition(p)
    call('SET', base .. ':p:' .. p.key, cmsgpack.pack({
        p.order, p.version, p.override, p.paused, p.held, p.holders, p.since, p.since_then, p.waiting,
        p.beyond, p.exclusive, p.next_grant, p.last_arrival, p.tat, p.buried, p.idle, p.virtual,
    }))
end

function rules.limit_of(p)
    if p.override ~= '' then
        return p.override
    end
    return guard.override ~= '' and guard.override or guard.limit
end

function rules.is_shut(p)
    return p.paused == 1 or guard.paused == 1
end

-- The moment before which the pace lets nobody in behind `position` others; 0: no pace.
function rules.opening(p, position)
    return guard.pace == '' and 0 or p.tat - (guard.burst - 1) * guard.pace + position * guard.pace
end

function rules.has_room(p, permits)
    if permits == 0 then
        return p.holders == 0
    end
    return p.held + permits <= rules.limit_of(p)
end

function rules.fits(p, permits)
    return not rules.is_shut(p) and rules.opening(p, 0) <= now and rules.has_room(p, permits)
end

-- Look at a partition, if it is there.
function rules.find_partition(key)
    local p = partitions[key]
    if p then
        return p
    end
    p = rules.read_partition(key)
    if not p then
        return nil
    end
    if p.idle ~= '' and p.idle <= now then
        rules.delete_partition(key, p.idle)
        return nil
    end
    partitions[key] = p
    if p.version ~= guard.version then
        rules.settle(p)
    end
    return p
end

-- Find or make a partition; nil where too many keys are in use, unless it is made in any case.
function rules.open_partition(key, always)
    local p = rules.find_partition(key)
    if p then
        return p
    end
    if key ~= '' and not always then
        local keys = call('ZCARD', base .. ':k')
        if keys >= guard.max_keys and keys - call('ZCOUNT', base .. ':i', '-inf', now) >= guard.max_keys then
            return nil
        end
    end
    p = {
        key = key, order = guard.order, version = guard.version, override = '', paused = 0, held = 0, holders = 0,
        since = 0, since_then = 0, waiting = 0, beyond = 0, exclusive = 0, next_grant = guard.floor,
        last_arrival = 0, tat = 0, buried = 0, idle = '', virtual = 0,
    }
    partitions[key] = p
    return p
end

-- Delete the partition of a key once nothing about it would be missed.
function rules.retire(p)
    local idle = ''
    if p.key ~= '' and p.holders == 0 and p.waiting == 0 and p.paused == 0 and p.override == '' then
        idle = math.max(p.tat, p.next_grant, p.buried, now)
        if idle <= now then
            if p.stored then
                rules.delete_partition(p.key, idle)
            else
                rules.delete_keys(p.key)
            end
            p.changed = false
            return
        end
    end
    if p.idle ~= idle then
        if idle == '' then
            call('ZREM', base .. ':i', p.key)
        else
            call('ZADD', base .. ':i', idle, p.key)
        end
        p.idle, p.changed = idle, true
    end
end

function rules.delete_some_idle(most)
    local first = call('ZRANGE', base .. ':i', 0, 0, 'WITHSCORES')
    if not first[1] or tonumber(first[2]) > now then
        return
    end
    local idle = call('ZRANGEBYSCORE', base .. ':i', '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
    for i = 1, #idle, 2 do
        if not partitions[idle[i]] then
            rules.delete_partition(idle[i], tonumber(idle[i + 1]))
        end
    end
    return #idle == 2 * most
end

-- === 3. Grants and releases =======================================================================

-- Have an id that ended refused for two leases, with this reason. The server deletes the tombstone by itself.
function rules.bury(p, ticket, reason)
    fetched = nil
    local ends = now + 2 * ticket.lease
    local known = ticket.state == 'refused' or ticket.state == 'lost'
    call(
        'SET', base .. ':t:' .. ticket.id,
        cmsgpack.pack({ends, ticket.state, reason, known and rules.row_of(ticket) or ''}),
        'PX', math.ceil(2 * ticket.lease / 1000) + 1
    )
    if p then
        p.buried, p.changed = math.max(p.buried, ends), true
    end
end

-- Date an arrival: no two are the same, but that who had entered before the server lost its data comes again with
-- the date that it was given then, and so keeps its place.
function rules.stamp_arrival(p, ticket)
    if ticket.since and ticket.since < now then
        ticket.arrival = ticket.since
    else
        p.last_arrival = math.max(p.last_arrival + 1, now)
        ticket.arrival = p.last_arrival
    end
end

-- Have a ticket hold; it is given a microsecond of its own, which is its token.
function rules.grant(p, ticket)
    local granted = math.max(now, p.next_grant)
    p.next_grant = granted + 1
    ticket.granted, ticket.state = granted, 'held'
    if p.holders == 0 then
        p.since, p.since_then = granted, 0
    else
        p.since_then = p.since_then + granted - p.since
    end
    p.holders = p.holders + 1
    p.held = p.held + (ticket.permits == 0 and ALL or ticket.permits)
    if guard.pace ~= '' then
        p.tat = math.max(p.tat, now) + guard.pace
    end
    p.changed = true
end

-- Count a ticket that holds no more. What was broken off says nothing of how long work takes; what took place
-- took a nanosecond at least, as a mean of 0 says that none was seen.
function rules.count_hold(ticket, finished)
    guard.ended = guard.ended + 1
    guard.changed = true
    if not finished then
        return
    end
    local hold = math.max(1, (now - ticket.granted) * 1000)
    local wait = (ticket.granted - ticket.arrival) * 1000
    call('SETRANGE', base .. ':r', guard.finished % RECENT * 16, struct.pack('<dd', wait, hold))
    guard.finished = guard.finished + 1
    guard.batch, guard.batch_ns = guard.batch + 1, guard.batch_ns + hold
    local size = guard.mean == 0 and ENOUGH or BATCH
    if guard.batch == size then
        local mean = guard.batch_ns / size
        guard.mean = guard.mean == 0 and mean or (guard.mean + mean) / 2
        guard.batch, guard.batch_ns = 0, 0
    end
end

function rules.release(p, ticket, finished)
    call('ZREM', base .. ':x', ticket.id)
    ticket.ended = now
    p.holders = p.holders - 1
    p.held = p.held - (ticket.permits == 0 and ALL or ticket.permits)
    p.since_then = p.since_then - ticket.granted + p.since
    p.changed = true
    if p.order == 'fair' then
        rules.correct(p, ticket)
    end
    if ticket.permits == 0 then
        rules.reorder(p)
    end
    rules.count_hold(ticket, finished)
end

-- Grant in order while permits are free. `own` is the ticket whose caller reads it in the answer.
function rules.advance(p, own)
    while p.waiting > 0 and p.held < rules.limit_of(p) and not rules.is_shut(p) and rules.opening(p, 0) <= now do
        if grants == 0 then
            more[#more + 1] = {'advance', p.key}
            return
        end
        local ticket = rules.first_of(p)
        if own and ticket.id == own.id then
            ticket = own
        end
        if dead_remain and ticket ~= own and rules.has_ended(ticket.id) then
            rules.expire(p, ticket)
        elseif rules.has_room(p, ticket.permits) then
            rules.grant(p, ticket)
            rules.dequeue(p, ticket, p.order == 'fair' and rules.charge(p, ticket))
            rules.write_ticket(ticket)
            if ticket ~= own then
                rules.decide(ticket)
            end
        else
            return
        end
        grants = grants - 1
    end
end

-- === 4. What each step begins and ends with =======================================================

-- Drop what has expired in the whole guard, and pass on what it held.
function rules.sweep()
    local first = call('ZRANGE', base .. ':x', 0, 0, 'WITHSCORES')
    if first[1] and tonumber(first[2]) <= now then
        rules.drop_expired()
    end
end

-- Note what time it is, and let the server's clock catch up with the guard's: by half a percent, which leases bear.
function rules.note_time()
    if now - guard.seen > 1000000 or guard.changed then
        guard.ahead = math.max(0, guard.ahead - math.floor((now - guard.seen) / 200))
        guard.seen, guard.changed = now, true
    end
end

function rules.begin(force)
    rules.read_guard()
    rules.sweep()
    if guard.declared ~= declared and (force or cjson.decode(declared)[1] > guard.revision) then
        rules.change_all(function() rules.adopt(declared) end)
    end
end

function rules.finish(rows)
    for key, p in pairs(partitions) do
        rules.retire(p)
        if p.waiting > 0 and not rules.is_shut(p) then
            rules.note_due(rules.opening(p, 0))
        end
        if p.changed then
            rules.write_partition(p)
            if not p.stored and key ~= '' then
                call('ZADD', base .. ':k', 0, key)
            end
        end
    end
    rules.note_time()
    if guard.changed then
        rules.write_guard()
    end
    for whose, news in pairs(told) do
        call(ring, base .. ':c:' .. whose, '[' .. table.concat(news, ',') .. ']')
    end
    return {
        more, due and rules.digits(due) or '', guard.declared ~= declared and guard.declared or '', rows or {},
        decided, rules.digits(now),
    }
end

-- === 5. Enter and leave ===========================================================================

-- What the caller of an enter is answered that has its answer already; nil: it hasn't.
function rules.answer_again(p, ticket)
    local known, tombstone = rules.read_ticket(ticket.id)
    if tombstone then
        rules.refuse_again(p, ticket, tombstone[3])
        known = ticket
    end
    return known
end

-- Patience and `within` are nanoseconds; an empty one is no bound.
function rules.do_enter(
    id, key, lease, permits, patience, priority, tenant, share, label, owner, within, waits, since
)
    local ticket = {
        id = id, key = key, lease = rules.number('lease', lease), permits = rules.number('permits', permits),
        priority = rules.number('priority', priority), tenant = tenant, share = rules.number('share', share),
        label = label,
        owner = owner, charged = 0, granted = 0, since = rules.number('since', since, false),
    }
    patience, within = rules.number('patience', patience, false), rules.number('within', within, false)
    if ticket.lease <= 0 then
        rules.bad('lease', 'microseconds above 0', lease)
    end
    rules.fetch(key, id)
    rules.begin()
    if key ~= '' then
        rules.delete_some_idle(MOST_IDLE)
    end
    local p = rules.open_partition(key)
    if p then
        rules.advance(p)
    end
    local known = rules.answer_again(p, ticket)
    if known then
        return rules.finish({rules.row_of(known)})
    elseif not p then
        rules.refuse_key(ticket)
        return rules.finish({rules.row_of(ticket)})
    elseif ticket.permits > rules.limit_of(p) then
        rules.refuse(p, ticket, 'too_large')
        rules.bury(p, ticket, 'too_large')
        return rules.finish({rules.row_of(ticket)})
    end
    if p.waiting == 0 and p.order ~= 'fair' and p.order == guard.order and rules.fits(p, ticket.permits) then
        rules.stamp_arrival(p, ticket)  -- it would be queued, and granted at once
        rules.grant(p, ticket)
        rules.write_ticket(ticket)
        call('ZADD', base .. ':x', now + ticket.lease, id)
        return rules.finish({rules.row_of(ticket)})
    end
    rules.enqueue(p, ticket)
    rules.write_ticket(ticket)
    call('ZADD', base .. ':x', now + ticket.lease, id)
    rules.advance(p, ticket)
    if ticket.state == 'waiting' then
        if waits == '1' then
            rules.judge(p, ticket, patience, within)
        else
            rules.withdraw(p, ticket)
            call('DEL', base .. ':t:' .. id)
            ticket.state = 'new'
        end
    end
    if ticket.state == 'waiting' then
        rules.note_first_lease()
        ticket.outlook = {waiting = p.waiting, limit = rules.limit_of(p)}
    end
    return rules.finish({rules.row_of(ticket)})
end

-- Release or withdraw; idempotent. A tombstone stays, as a request to enter may come after. `reason` is why a
-- waiting ticket gives up, where it isn't simply withdrawn; `finished` ("1"): the work ended by itself.
function rules.do_leave(id, key, lease, reason, finished)
    local asked = {id = id, key = key, lease = rules.number('lease', lease), state = 'gone'}
    rules.fetch(key, id)
    rules.begin()
    local p = rules.open_partition(key)
    if p then
        rules.advance(p)
    end
    local ticket, tombstone = rules.read_ticket(id)
    local row = tombstone and tombstone[4] ~= '' and tombstone[4]
    ticket = ticket or asked
    if ticket.state == 'held' then
        rules.release(p, ticket, finished == '1')
        ticket.state = 'released'
    elseif ticket.state == 'waiting' then
        rules.withdraw(p, ticket)
        ticket.state = 'withdrawn'
        if reason ~= '' then
            rules.refuse(p, ticket, reason)
        end
    end
    rules.bury(p, ticket, 'superseded')
    if p and ticket ~= asked then
        rules.advance(p)
    end
    return rules.finish({row or rules.row_of(ticket)})
end

-- === 6. Tickets that wait =========================================================================

lots[1] = function()

-- Write the beginning of a member that is to stand in the order of arrival where scores are the same.
function rules.padded(arrival)
    return string.format('%016.0f', arrival)
end

-- Note that a step decided upon a ticket that it wasn't called for.
function rules.decide(ticket)
    local row = rules.row_of(ticket)
    local whose = string.match(ticket.id, '^[^.]*')
    decided[#decided + 1] = row
    if whose ~= client then
        told[whose] = told[whose] or {}
        table.insert(told[whose], row)
    end
end

-- The line in which a ticket waits.
function rules.line_of(p, tenant)
    return base .. ':q:' .. p.key .. (p.order == 'fair' and ':' .. tenant or '')
end

function rules.place_of(ticket)
    return rules.padded(ticket.arrival) .. ticket.id
end

-- Follow the guard's order, which changes only where nobody holds or waits.
function rules.reorder(p)
    if p.order ~= guard.order and p.holders == 0 and p.waiting == 0 then
        if p.order == 'fair' then
            call('DEL', base .. ':f:' .. p.key, base .. ':b:' .. p.key)
        end
        p.order, p.virtual, p.changed = guard.order, 0, true
    end
end

function rules.count_waiting(p, ticket, sign)
    p.waiting = p.waiting + sign
    p.changed = true
    if ticket.permits == 0 then
        p.exclusive = p.exclusive + sign
    elseif ticket.permits > 1 then
        p.beyond = p.beyond + sign * (ticket.permits - 1)
        if sign > 0 then
            call('ZADD', base .. ':l:' .. p.key, ticket.permits, ticket.id)
        else
            call('ZREM', base .. ':l:' .. p.key, ticket.id)
        end
    end
end

function rules.enqueue(p, ticket)
    rules.reorder(p)
    rules.stamp_arrival(p, ticket)
    ticket.state = 'waiting'
    local score = p.order == 'lifo' and -ticket.arrival or ticket.arrival - ticket.priority
    call('ZADD', rules.line_of(p, ticket.tenant), score, rules.place_of(ticket))
    if p.order == 'fair' then
        rules.join_turns(p, ticket)
    end
    rules.count_waiting(p, ticket, 1)
end

-- Take a ticket out of the queue; `tenant` is its tenant where that isn't stored yet.
function rules.dequeue(p, ticket, tenant)
    call('ZREM', rules.line_of(p, ticket.tenant), rules.place_of(ticket))
    if p.order == 'fair' then
        tenant = tenant or rules.read_tenant(p, ticket.tenant)
        tenant.waiting = tenant.waiting - 1
        rules.place_tenant(p, tenant)
    end
    rules.count_waiting(p, ticket, -1)
end

-- Take a waiting ticket out altogether.
function rules.withdraw(p, ticket)
    call('ZREM', base .. ':x', ticket.id)
    rules.dequeue(p, ticket)
end

-- The ticket that is granted next.
function rules.first_of(p)
    local line = base .. ':q:' .. p.key
    if p.order == 'fair' then
        line = line .. ':' .. string.sub(call('ZRANGE', base .. ':n:' .. p.key, 0, 0)[1], 17)
    end
    return rules.read_ticket(string.sub(call('ZRANGE', line, 0, 0)[1], 17))
end

-- `refuse_at_the_door`: refuse a ticket that has just been queued, or another in its place, if it had better
-- not wait. One probe waiter is always let in.
function rules.judge(p, ticket, patience, within)
    local surplus
    if guard.max_waiting ~= '' and p.waiting > guard.max_waiting then
        surplus = rules.surplus_of(p, ticket)
    end
    if surplus == ticket.id then
        rules.turn_away(p, ticket, 'full')
    elseif patience == 0 then
        rules.turn_away(p, ticket, rules.is_shut(p) and 'paused' or 'timeout')
    elseif patience and p.waiting > 1 and rules.is_hopeless(p, ticket, patience, within) then
        rules.turn_away(p, ticket, 'hopeless')
    elseif surplus then
        local other = rules.read_ticket(surplus)
        rules.turn_away(p, other, 'full')
        rules.decide(other)
        rules.advance(p, ticket)  -- it may have been in the way of those behind it
    end
end

function rules.note_due(moment)
    if moment > now and (not due or moment < due) then
        due = moment
    end
end

-- When time next ends a lease: asked for by those who wait, and so may have to see to it.
function rules.note_first_lease()
    local first = call('ZRANGE', base .. ':x', 0, 0, 'WITHSCORES')
    if first[1] then
        rules.note_due(tonumber(first[2]))
    end
end

-- Extend the leases of those that are still here; of each that isn't, say what is known.
function rules.do_renew(...)
    local ids, rows, ends = {...}, {}, {}
    rules.begin()
    for i, id in ipairs(ids) do
        local ticket, tombstone = rules.read_ticket(id)
        if ticket then
            ends[#ends + 1] = now + ticket.lease
            ends[#ends + 1] = id
        end
        rows[i] = ticket and rules.row_of(ticket) or tombstone and tombstone[4] ~= '' and tombstone[4]
            or rules.row_of({id = id, state = 'gone'})
    end
    if #ends > 0 then
        local answer = redis.pcall('ZADD', base .. ':x', unpack(ends))
        if type(answer) == 'table' and answer.err then
            call('ZREM', base .. ':x', '')  -- a full server refuses what may take memory only as a first write
            call('ZADD', base .. ':x', unpack(ends))
        end
    end
    rules.note_first_lease()
    return rules.finish(rows)
end

end

-- === 7. Refusals, and the estimate ================================================================

lots[2] = function()

function rules.bad(what, expected, got)
    error({err = 'ASYNCGUARD ' .. what .. ': expected ' .. expected .. ', got ' .. tostring(got)})
end

function rules.refuse(p, ticket, reason)
    ticket.state, ticket.reason = 'refused', reason
    ticket.outlook = rules.outlook_of(p)
    call('HINCRBY', base .. ':c', reason, 1)
end

function rules.turn_away(p, ticket, reason)
    rules.withdraw(p, ticket)
    rules.refuse(p, ticket, reason)
    rules.bury(p, ticket, reason)
end

function rules.refuse_again(p, ticket, reason)
    ticket.state, ticket.reason = 'refused', reason
    ticket.outlook = p and rules.outlook_of(p) or {waiting = 0, limit = rules.limit_of({override = ''})}
end

function rules.refuse_key(ticket)
    rules.refuse_again(nil, ticket, 'too_many_keys')
    call('HINCRBY', base .. ':c', 'too_many_keys', 1)
end

-- Whom a full queue refuses: the id.
function rules.surplus_of(p, ticket)
    if p.order == 'fifo' then
        return ticket.id
    end
    local line = base .. ':q:' .. p.key
    if p.order == 'fair' then
        line = line .. ':' .. string.sub(call('ZRANGE', base .. ':w:' .. p.key, -1, -1)[1], 17)
    end
    return string.sub(call('ZRANGE', line, -1, -1)[1], 17)
end

function rules.is_hopeless(p, ticket, patience, within)
    local wait = rules.foresee(p, rules.position_of(p, ticket), ticket.permits)
    return wait and (wait > patience or (within and wait + guard.mean > within))
end

-- The permits that `position` waiting tickets ask for, if they ask for what all do on average.
function rules.ahead_of(p, position)
    if p.waiting == 0 then
        return 0
    end
    return position * (1 + (p.beyond + p.exclusive * (rules.limit_of(p) - 1)) / p.waiting)
end

-- Nanoseconds that one for so many permits would wait behind `position` others; nil: too little is known.
-- ((permits ahead + those it asks for beyond one) * mean hold + what is left of the holders') / limit, and never
-- before the pace lets it in: docs/decisions/0003-estimate.md.
function rules.foresee(p, position, permits)
    if rules.is_shut(p) then
        return nil
    end
    local paced = (rules.opening(p, position) - now) * 1000
    local mean, limit = guard.mean, rules.limit_of(p)
    if mean == 0 then
        return paced > 0 and paced or nil
    end
    local left = 0
    if p.held >= ALL then
        left = mean / 2
    elseif p.holders > 0 then
        left = math.max(0, mean - (now - p.since) * 1000 + p.since_then * 1000 / p.holders)
    end
    local wanted = (permits == 0 and limit or permits) - 1
    return math.max(((rules.ahead_of(p, position) + wanted) * mean + left) / limit, paced)
end

-- What a ticket meets that enters now, for one permit.
function rules.outlook_of(p)
    local outlook = {waiting = p.waiting, limit = rules.limit_of(p)}
    if p.waiting == 0 and p.held < outlook.limit and not rules.is_shut(p) then
        outlook.wait = math.max(0, (rules.opening(p, 0) - now) * 1000)
    else
        outlook.wait = rules.foresee(p, p.order == 'lifo' and 0 or p.waiting, 1)
    end
    return outlook
end

-- Round to the even, as Python does.
function rules.round(value)
    local floor = math.floor(value)
    if value - floor > 0.5 or (value - floor == 0.5 and floor % 2 == 1) then
        return floor + 1
    end
    return floor
end

-- About how many tickets will be granted before one that waits.
function rules.position_of(p, ticket)
    if p.order == 'lifo' then
        return 0
    end
    local rank = call('ZRANK', rules.line_of(p, ticket.tenant), rules.place_of(ticket))
    if p.order == 'fifo' then
        return rank
    end
    local tenant = rules.read_tenant(p, ticket.tenant)
    local turns = base .. ':n:' .. p.key
    local turn = call('ZRANK', turns, tenant.first .. tenant.name)
    local some = call('ZRANGE', turns, 0, SOME - 1)
    for i, member in ipairs(some) do
        some[i] = string.sub(member, 17)
    end
    local packed = call('HMGET', base .. ':f:' .. p.key, unpack(some))
    local seen, ahead = 0, 0
    for i, name in ipairs(some) do
        if name ~= tenant.name then
            -- For each turn of this tenant another has as many as its share says.
            local other = rules.unpack_tenant(name, packed[i])
            local theirs = math.ceil((rank + 1) * other.share / tenant.share) - (i - 1 > turn and 1 or 0)
            ahead = ahead + math.min(other.waiting, theirs)
            seen = seen + 1
        end
    end
    local others = seen > 0 and ahead * (call('ZCARD', turns) - 1) / seen or 0
    return math.min(rules.round(others) + rank, p.waiting - 1)
end

-- === 8. Fair order ================================================================================

-- docs/decisions/0007-fair-order.md says why these steps are as they are.

local TENANT = {'tag', 'advanced', 'share', 'holding', 'waiting', 'born', 'placed', 'first', 'last'}

function rules.pack_tenant(tenant)
    local values = {}
    for i, field in ipairs(TENANT) do
        values[i] = tenant[field]
    end
    return cmsgpack.pack(values)
end

function rules.unpack_tenant(name, packed)
    local values = cmsgpack.unpack(packed)
    local tenant = {name = name}
    for i, field in ipairs(TENANT) do
        tenant[field] = values[i]
    end
    return tenant
end

function rules.read_tenant(p, name)
    local packed = call('HGET', base .. ':f:' .. p.key, name)
    return packed and rules.unpack_tenant(name, packed)
end

-- `_place`: put a tenant where it now stands among those that wait, or those that owe, and store it.
function rules.place_tenant(p, tenant)
    local turns, weights, debts = base .. ':n:' .. p.key, base .. ':w:' .. p.key, base .. ':b:' .. p.key
    if tenant.placed == 'turn' then
        call('ZREM', turns, tenant.first .. tenant.name)
        call('ZREM', weights, tenant.last .. tenant.name)
    elseif tenant.placed == 'debt' then
        call('ZREM', debts, rules.padded(tenant.born) .. tenant.name)
    end
    tenant.placed = ''
    if tenant.waiting > 0 then
        local line = rules.line_of(p, tenant.name)
        tenant.placed = 'turn'
        tenant.first = string.sub(call('ZRANGE', line, 0, 0)[1], 1, 16)
        tenant.last = string.sub(call('ZRANGE', line, -1, -1)[1], 1, 16)
        call('ZADD', turns, tenant.tag, tenant.first .. tenant.name)
        call('ZADD', weights, tenant.waiting / tenant.share, tenant.last .. tenant.name)
    elseif tenant.holding == 0 then
        tenant.placed = 'debt'
        call('ZADD', debts, tenant.tag, rules.padded(tenant.born) .. tenant.name)
    end
    call('HSET', base .. ':f:' .. p.key, tenant.name, rules.pack_tenant(tenant))
end

-- `_forgive`: forget the debtors whose tag is behind V; where they are many, V goes after them.
function rules.forgive(p)
    local debts = base .. ':b:' .. p.key
    for _ = 1, SOME do
        local first = call('ZRANGE', debts, 0, 0, 'WITHSCORES')
        if not first[1] then
            return
        end
        local tag = tonumber(first[2])
        if tag > p.virtual and call('ZCARD', debts) <= DEBTS + 2 * call('ZCARD', base .. ':n:' .. p.key) then
            return
        end
        p.virtual = math.max(p.virtual, tag)
        call('ZREM', debts, first[1])
        call('HDEL', base .. ':f:' .. p.key, string.sub(first[1], 17))
    end
end

-- `FairQueue.add`: a tenant that becomes active starts at V or above.
function rules.join_turns(p, ticket)
    rules.forgive(p)
    local tenant = rules.read_tenant(p, ticket.tenant)
    if not tenant then
        tenant = {
            name = ticket.tenant, tag = p.virtual, advanced = 0, holding = 0, waiting = 0, born = ticket.arrival,
            placed = '', first = '', last = '',
        }
    elseif tenant.waiting == 0 and tenant.holding == 0 then
        tenant.tag = math.max(tenant.tag, p.virtual)
    end
    tenant.share = ticket.share
    tenant.waiting = tenant.waiting + 1
    rules.place_tenant(p, tenant)
end

function rules.cost_of(p, ticket, duration)
    return (ticket.permits == 0 and rules.limit_of(p) or ticket.permits) * duration
end

-- `FairQueue.granted`: charge what the hold is expected to cost; V leaves out what is only expected.
function rules.charge(p, ticket)
    local tenant = rules.read_tenant(p, ticket.tenant)
    p.virtual = math.max(p.virtual, tenant.tag - tenant.advanced)
    ticket.charged = rules.cost_of(p, ticket, guard.mean) / tenant.share
    tenant.tag = tenant.tag + ticket.charged
    tenant.advanced = tenant.advanced + ticket.charged
    tenant.holding = tenant.holding + 1
    rules.forgive(p)
    return tenant
end

-- `FairQueue.released`: correct that to what it did cost.
function rules.correct(p, ticket)
    local tenant = rules.read_tenant(p, ticket.tenant)
    local cost = rules.cost_of(p, ticket, math.max(0, now - ticket.granted) * 1000)
    tenant.tag = tenant.tag + (cost / tenant.share - ticket.charged)
    tenant.holding = tenant.holding - 1
    tenant.advanced = tenant.holding > 0 and tenant.advanced - ticket.charged or 0
    rules.place_tenant(p, tenant)
    rules.forgive(p)
end

-- === 9. What time brings ==========================================================================

-- Drop a ticket whose lease has ended.
function rules.expire(p, ticket)
    if ticket.state == 'held' then
        rules.release(p, ticket, false)
    else
        rules.withdraw(p, ticket)
    end
    ticket.state = 'lost'
    rules.bury(p, ticket, 'superseded')
    rules.decide(ticket)
end

function rules.has_ended(id)
    local ends = call('ZSCORE', base .. ':x', id)
    return not ends or tonumber(ends) <= now
end

function rules.drop_expired()
    local ended = call('ZRANGEBYSCORE', base .. ':x', '-inf', now, 'WITHSCORES', 'LIMIT', 0, MOST_EXPIRED)
    if #ended == 2 * MOST_EXPIRED then
        dead_remain = true
        more[#more + 1] = {'advance'}
    end
    local tickets = {}
    for i = 1, #ended, 2 do
        local ticket = rules.read_ticket(ended[i])
        ticket.expires = tonumber(ended[i + 1])
        tickets[#tickets + 1] = ticket
    end
    table.sort(tickets, function(one, other)
        return one.expires < other.expires or (one.expires == other.expires and one.arrival < other.arrival)
    end)
    local moved = {}
    for _, ticket in ipairs(tickets) do
        local p = rules.find_partition(ticket.key)
        rules.expire(p, ticket)
        moved[p.key] = p
    end
    for _, p in pairs(moved) do
        rules.advance(p)
    end
end

function rules.delete_keys(key)
    call('DEL', base .. ':p:' .. key, base .. ':f:' .. key, base .. ':b:' .. key)
end

-- Delete a partition of which nothing would be missed; that tokens grow on is seen to by the floor.
function rules.delete_partition(key, idle)
    fetched = nil
    call('ZREM', base .. ':i', key)
    call('ZREM', base .. ':k', key)
    rules.delete_keys(key)
    guard.floor = math.max(guard.floor, idle)
    guard.changed = true
end

-- Advance the partitions of these keys, and see to what time has ended in the whole guard.
function rules.do_advance(...)
    rules.begin()
    if rules.delete_some_idle(MOST_EXPIRED) then
        more[#more + 1] = {'advance'}
    end
    for _, key in ipairs({...}) do
        local p = rules.find_partition(key)
        if p then
            rules.advance(p)
        end
    end
    rules.note_first_lease()
    return rules.finish()
end

-- === 10. Rules that change, and what operators do =================================================

function rules.adopt(declaration)
    local revision, limit, max_waiting, order, max_keys, rate, pace = unpack(cjson.decode(declaration), 1, 7)
    guard.declared, guard.revision, guard.limit, guard.order = declaration, revision, limit, order
    guard.max_keys = max_keys
    guard.max_waiting = max_waiting == cjson.null and '' or max_waiting
    guard.pace = pace == cjson.null and '' or pace
    guard.burst = rate == cjson.null and 1 or rate[3]
    guard.version = guard.version + 1
    guard.changed = true
end

-- Follow a change of the rules: refuse what can't fit any more, grant what now can.
function rules.settle(p)
    rules.reorder(p)
    p.tat = guard.pace == '' and 0 or math.min(p.tat, now + guard.burst * guard.pace)
    p.version, p.changed = guard.version, true
    if p.beyond > 0 then
        local large = call(
            'ZRANGEBYSCORE', base .. ':l:' .. p.key, '(' .. rules.digits(rules.limit_of(p)), '+inf',
            'LIMIT', 0, MOST_GRANTS
        )
        for i, id in ipairs(large) do
            large[i] = rules.read_ticket(id)
        end
        table.sort(large, function(one, other)
            local a = p.order == 'lifo' and -one.arrival or one.arrival - one.priority
            local b = p.order == 'lifo' and -other.arrival or other.arrival - other.priority
            return a < b or (a == b and one.arrival < other.arrival)
        end)
        for _, ticket in ipairs(large) do
            rules.turn_away(p, ticket, 'too_large')
            rules.decide(ticket)
        end
        if #large == MOST_GRANTS then
            p.version = -1
            more[#more + 1] = {'advance', p.key}
        end
    end
    rules.advance(p)
end

-- The guard's own partition, and those of some keys after `cursor`; a guard may have many.
function rules.some_partitions(cursor)
    local keys = call('ZRANGEBYLEX', base .. ':k', '(' .. cursor, '+', 'LIMIT', 0, MOST_PARTITIONS)
    if #keys == MOST_PARTITIONS then
        more[#more + 1] = {'settle', keys[#keys]}
    end
    local found = {}
    if cursor == '' then
        found[1] = rules.find_partition('')
    end
    for _, key in ipairs(keys) do
        found[#found + 1] = rules.find_partition(key)
    end
    return found
end

-- Change what stands for all keys. What is due before is granted; then some partitions follow at once, and the
-- others as soon as they are looked at: `more` says that they are to be.
function rules.change_all(change)
    local some = rules.some_partitions('')
    for _, p in ipairs(some) do
        rules.advance(p)
    end
    change()
    for _, p in ipairs(some) do
        rules.settle(p)
    end
end

function rules.do_settle(cursor)
    rules.begin()
    rules.some_partitions(cursor)
    return rules.finish()
end

-- Take a ticket out, waiting or held, as it is; what was due besides is granted after.
function rules.do_evict(id)
    rules.begin()
    local ticket = rules.read_ticket(id)
    if not ticket then
        return rules.finish()
    end
    local p = rules.find_partition(ticket.key)
    if ticket.state == 'held' then
        rules.release(p, ticket, false)
        ticket.state = 'lost'
        rules.bury(p, ticket, 'evicted')
    else
        rules.turn_away(p, ticket, 'evicted')
    end
    rules.decide(ticket)
    rules.advance(p)
    return rules.finish({rules.row_of(ticket)})
end

-- An operator's limit ("": none, "keep": as it is) and pause, for one key or, with none, for all.
function rules.do_configure(key, limit, paused)
    if limit ~= 'keep' then
        limit = rules.number('limit', limit, '')
    end
    local function set(what)
        what.override = limit == 'keep' and what.override or limit
        what.paused = paused == 'keep' and what.paused or tonumber(paused)
        what.changed = true
    end
    rules.begin()
    if key == '' then
        rules.change_all(function()
            set(guard)
            guard.version = guard.version + 1
        end)
    else
        local p = rules.open_partition(key, true)
        rules.advance(p)
        set(p)
        rules.settle(p)
    end
    return rules.finish()
end

function rules.do_declare(force)
    rules.begin(force == '1')
    return rules.finish()
end

-- All that is stored of a guard, or of one key, to be pictured by whoever asked; nothing is changed.
function rules.do_inspect(which)
    local found, tickets, tenants = {}, {}, {}
    rules.read_guard()
    local keys = which == '*' and call('ZRANGE', base .. ':k', 0, -1) or {which}
    if which == '*' then
        table.insert(keys, 1, '')
    end
    local wanted = {}
    for _, key in ipairs(keys) do
        local p = rules.read_partition(key)
        if p and (p.idle == '' or p.idle > now) then
            wanted[key] = true
            found[#found + 1] = {
                key, p.order, tostring(p.override), tostring(p.paused), rules.digits(p.tat),
            }
            if p.order == 'fair' then
                for _, member in ipairs(call('ZRANGE', base .. ':n:' .. key, 0, -1)) do
                    local tenant = rules.read_tenant(p, string.sub(member, 17))
                    tenants[#tenants + 1] = {
                        key, tenant.name, string.format('%.17g', tenant.tag),
                        string.format('%.17g', tenant.share),
                    }
                end
            end
        end
    end
    local held = 0
    for _, id in ipairs(call('ZRANGE', base .. ':x', 0, -1)) do
        local ticket = rules.read_ticket(id)
        if ticket and ticket.state == 'held' then
            held = held + 1
        end
        if ticket and wanted[ticket.key] then
            tickets[#tickets + 1] = {
                id, ticket.key, ticket.state, rules.digits(ticket.permits), rules.digits(ticket.priority),
                rules.digits(ticket.arrival), rules.digits(ticket.granted), string.format('%.17g', ticket.share),
                ticket.tenant, ticket.label, ticket.owner,
            }
        end
    end
    return {
        rules.digits(now), guard.declared, tostring(guard.override), tostring(guard.paused),
        rules.digits(guard.ended + held), string.format('%.17g', guard.mean), call('HGETALL', base .. ':c'),
        call('GET', base .. ':r') or '', found, tickets, tenants,
    }
end

-- Whether the permits that are held keep out one that asks for so many, or the first in line: "1" or "0".
function rules.do_is_full(key, permits)
    permits = rules.number('permits', permits)
    rules.read_guard()
    local p = rules.read_partition(key)
    if not p then
        return '0'
    end
    if p.waiting > 0 and not rules.has_room(p, rules.first_of(p).permits) then
        return '1'
    end
    return rules.has_room(p, permits) and '0' or '1'
end

end

-- === The operation ================================================================================

if not declared then
    rules.bad('arguments', 'at least 5', #ARGV)
end
if given == '' then
    local time = call('TIME')
    now = tonumber(time[1]) * 1000000 + tonumber(time[2])
else
    now = rules.number('now', given)
end
local operate = rules['do_' .. operation]
if not operate then
    rules.bad('operation', 'one that this script knows', operation)
end
return operate(unpack(ARGV, 6))
