-- The rules of asyncguard.admission, as SQL for one file that many processes of a host open.
--
-- How to read this. Each operation is ONE statement, `INSERT INTO op_...`, so that SQLite's write lock
-- is taken and given back within one call into the library: never while Python waits for its GIL. What
-- came of it is read afterwards, by a SELECT. SQL has no procedures, but a view with an INSTEAD OF
-- INSERT trigger is one: the view's columns are its parameters, NEW its local variables, WHEN its
-- guard clause, and with recursive_triggers a trigger that inserts into its own view is a loop.
-- `op_...` is for callers, `do_...` for the triggers here. A parameter `step` is the id of the operation:
-- whom a step decided upon besides its own ticket is marked with it, so that its caller can ring them.
--
-- Times are ticks (nanoseconds) of the host's monotonic clock, passed in as `now`. A caller may have
-- read its clock and then waited for the lock: so every stamp that must grow (arrival, granted) is taken
-- as the larger of `now` and what is stored.
--
-- Needs SQLite 3.40. Statements are in the order in which they need each other.

-- === 1. Settings of the file, and of each connection =============================================

PRAGMA user_version = 2;

-- === 2. What is stored ===========================================================================

-- The one row about the file itself.
CREATE TABLE store (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    lives TEXT NOT NULL,             -- which file says who lives
    boot TEXT NOT NULL,              -- the host's boot since which it is used: each starts its clock anew
    epoch INTEGER NOT NULL           -- ticks to add for those since 1970: one for all, or tokens would differ
) STRICT;

-- Who may ask: one row for each event loop of each process. Its number is part of its tickets' ids.
CREATE TABLE client (
    id INTEGER PRIMARY KEY,                  -- chosen by the client
    owner TEXT NOT NULL,                     -- host and process, for people to read
    pid INTEGER NOT NULL,
    pids INTEGER NOT NULL                    -- the namespace of processes that it is of
) STRICT;

-- `Admission`: a guard's rules, what an operator set, and what was seen.
CREATE TABLE guard (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    declared TEXT NOT NULL,          -- the rules as declared, to compare
    revision INTEGER NOT NULL,
    capacity INTEGER NOT NULL,       -- the rules' limit
    max_waiting INTEGER,             -- NULL: no bound
    ordering TEXT NOT NULL,          -- the rules' order: fifo, lifo or fair
    pace INTEGER,                    -- the rate's interval in ticks; NULL: no rate
    burst INTEGER NOT NULL,
    max_keys INTEGER NOT NULL,
    override INTEGER,                -- an operator's limit for every key
    paused INTEGER NOT NULL DEFAULT 0,
    keys INTEGER NOT NULL DEFAULT 0,         -- partitions, its own aside
    floor INTEGER NOT NULL DEFAULT 0,        -- the highest next_grant of a deleted partition
    ended INTEGER NOT NULL DEFAULT 0,        -- tickets that held and hold no more
    batches INTEGER NOT NULL DEFAULT 0,      -- how many batches of holds the mean is of
    batch INTEGER NOT NULL DEFAULT 0,        -- holds that are not in it yet
    batch_ticks INTEGER NOT NULL DEFAULT 0,  -- their sum
    batch_text TEXT NOT NULL DEFAULT '',     -- the wait and the hold of each
    mean_hold REAL NOT NULL DEFAULT 0        -- ticks; 0: not yet
) STRICT;

-- Who declared a guard, and how, in the order in which they came: what somebody declared who lives stands.
CREATE TABLE declaration (
    id INTEGER PRIMARY KEY,
    guard INTEGER NOT NULL,
    client INTEGER NOT NULL,
    declared TEXT NOT NULL,
    revision INTEGER NOT NULL,
    capacity INTEGER NOT NULL,
    max_waiting INTEGER,
    ordering TEXT NOT NULL,
    pace INTEGER,
    burst INTEGER NOT NULL,
    max_keys INTEGER NOT NULL,
    UNIQUE (guard, declared, client)
) STRICT;

-- The last waits and holds of each guard, a thousand or some more, by batches: guard * 64 + place in a ring.
CREATE TABLE recent (
    id INTEGER PRIMARY KEY,
    batch_text TEXT NOT NULL
) STRICT;

CREATE TABLE refusal (
    guard INTEGER NOT NULL,
    reason TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (guard, reason)
) STRICT, WITHOUT ROWID;

-- `Partition`: the state of one (guard, key).
CREATE TABLE partition (
    id INTEGER PRIMARY KEY,
    guard INTEGER NOT NULL,
    key TEXT,                                -- NULL: the guard's own, which is never deleted
    ordering TEXT NOT NULL,                  -- follows the guard's when it is empty
    override INTEGER,
    paused INTEGER NOT NULL DEFAULT 0,
    held INTEGER NOT NULL DEFAULT 0,         -- permits held; 1 << 40 while one ticket holds them all
    holders INTEGER NOT NULL DEFAULT 0,      -- tickets that hold
    since INTEGER NOT NULL DEFAULT 0,        -- the first grant since nobody held
    since_then INTEGER NOT NULL DEFAULT 0,   -- the sum of the holders' grants, counted from there
    waiting INTEGER NOT NULL DEFAULT 0,      -- tickets that wait
    beyond INTEGER NOT NULL DEFAULT 0,       -- permits that these ask for beyond one each
    exclusive INTEGER NOT NULL DEFAULT 0,    -- how many of them ask for all permits
    next_grant INTEGER NOT NULL,             -- no grant is dated before: each has its microsecond, its token
    last_arrival INTEGER NOT NULL DEFAULT 0, -- no two arrivals are the same
    tat INTEGER NOT NULL DEFAULT 0,          -- theoretical arrival time of the next grant (GCRA)
    idle_from INTEGER,                       -- empty, and to be deleted from this tick on; NULL: in use
    virtual REAL NOT NULL DEFAULT 0,         -- fair order's V
    turns INTEGER NOT NULL DEFAULT 0,        -- tenants of which tickets wait
    debts INTEGER NOT NULL DEFAULT 0         -- tenants that have nothing here and are remembered
) STRICT;

CREATE UNIQUE INDEX partition_key ON partition (guard, key);
CREATE INDEX partition_idle ON partition (guard, idle_from) WHERE idle_from IS NOT NULL;

-- `Ticket`. Who was released or withdrew is deleted; who was refused or lost its permit stays until
-- its client has read why, and forgets it.
CREATE TABLE ticket (
    id INTEGER PRIMARY KEY,                  -- the client's number << 36 | a number of the client's own
    client INTEGER GENERATED ALWAYS AS (id >> 36) VIRTUAL,
    guard INTEGER NOT NULL,
    partition INTEGER,                       -- NULL: refused as too_many_keys
    state TEXT NOT NULL,                     -- waiting, held, refused, lost; within a step also others
    permits INTEGER NOT NULL,                -- 0: all of them
    line TEXT,                               -- the tenant in whose line it waits; NULL: not fair order
    score INTEGER NOT NULL,                  -- its place in the line: the lowest is first
    arrival INTEGER NOT NULL,
    granted INTEGER,
    at INTEGER NOT NULL,                     -- tick of the step that last changed its state
    ended INTEGER,                           -- tick at which it stopped to hold
    gone INTEGER,                            -- tick at which it stopped to wait, not granted
    reason TEXT,                             -- why it was refused
    foreseen REAL,                           -- ticks that one like it was expected to wait, at the door
    met_waiting INTEGER,                     -- how many waited when it was refused
    met_capacity INTEGER,                    -- and how many permits there were
    decided_by INTEGER,                      -- the step of another that granted or refused it
    charged REAL,                            -- what fair order charged its tenant for the grant
    share REAL NOT NULL,
    tenant TEXT NOT NULL,
    label TEXT NOT NULL
) STRICT;

CREATE INDEX ticket_line ON ticket (partition, line, score, arrival) WHERE state = 'waiting';
CREATE INDEX ticket_decided ON ticket (decided_by) WHERE decided_by IS NOT NULL;
CREATE INDEX ticket_news ON ticket (client) WHERE decided_by IS NOT NULL;

-- Fair order's `_Tenant`: what a tenant has had so far, and its place among the others.
CREATE TABLE tenant (
    partition INTEGER NOT NULL,
    name TEXT NOT NULL,
    share REAL NOT NULL,
    tag REAL NOT NULL,                       -- permit-ticks received per share
    advanced REAL NOT NULL DEFAULT 0,        -- how much of this was charged for holds that haven't ended
    holding INTEGER NOT NULL DEFAULT 0,      -- tickets that hold
    waiting INTEGER NOT NULL DEFAULT 0,      -- tickets that wait
    weight REAL GENERATED ALWAYS AS (waiting / share) VIRTUAL,
    born INTEGER NOT NULL,                   -- arrival of its first ticket
    first INTEGER,                           -- arrival of the first in its line
    last INTEGER,                            -- arrival of the last in its line
    PRIMARY KEY (partition, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX tenant_turns ON tenant (partition, tag, first) WHERE waiting > 0;
CREATE INDEX tenant_weights ON tenant (partition, weight, last) WHERE waiting > 0;
CREATE INDEX tenant_debts ON tenant (partition, tag, born) WHERE waiting = 0 AND holding = 0;

-- === 3. What decides =============================================================================

-- A partition with its guard: what is in force.
CREATE VIEW gate AS
SELECT
    p.id AS partition, p.guard, p.key, p.ordering, g.ordering AS declared_ordering,
    coalesce(p.override, g.override, g.capacity) AS capacity,
    p.paused OR g.paused AS shut,
    p.held, p.holders, p.since, p.since_then, p.waiting, g.max_waiting, p.next_grant, p.last_arrival,
    CASE WHEN g.pace IS NULL THEN 0 ELSE p.tat - (g.burst - 1) * g.pace END AS opening, g.pace,
    p.beyond + p.exclusive * (coalesce(p.override, g.override, g.capacity) - 1) AS beyond,
    g.mean_hold, p.turns
FROM partition AS p CROSS JOIN guard AS g ON g.id = p.guard;

-- Who is granted next: the lowest score of the tenant with the lowest tag; else, of the one line.
CREATE VIEW head AS
SELECT p.id AS partition, t.id AS ticket, t.permits
FROM partition AS p CROSS JOIN ticket AS t ON t.id = (
    SELECT id FROM ticket
    WHERE state = 'waiting' AND partition = p.id AND line IS (
        CASE p.ordering WHEN 'fair' THEN (
            SELECT name FROM tenant WHERE partition = p.id AND waiting > 0 ORDER BY tag, first LIMIT 1
        ) END
    )
    ORDER BY score, arrival LIMIT 1
);

-- === 4. Fair order ===============================================================================
-- Only tickets with a line take these steps: docs/decisions/0007-fair-order.md says why they are as they are.

-- `_forgive`: forget the debtors whose tag is behind V; where they are many, V goes after them.
CREATE VIEW do_forgive (partition) AS VALUES (0);
CREATE TRIGGER forgive INSTEAD OF INSERT ON do_forgive BEGIN
    UPDATE partition SET virtual = max(virtual, (
        SELECT tag FROM tenant WHERE partition = NEW.partition AND waiting = 0 AND holding = 0
        ORDER BY tag, born
        LIMIT 1 OFFSET (SELECT debts - (64 + 2 * turns) - 1 FROM partition WHERE id = NEW.partition)
    )) WHERE id = NEW.partition AND debts > 64 + 2 * turns;
    DELETE FROM tenant
    WHERE partition = NEW.partition AND waiting = 0 AND holding = 0
        AND tag <= (SELECT virtual FROM partition WHERE id = NEW.partition);
END;

-- How many tenants wait, and how many owe, is kept with the partition.
CREATE TRIGGER tenant_came AFTER INSERT ON tenant BEGIN
    UPDATE partition SET debts = debts + 1 WHERE id = NEW.partition;
END;
CREATE TRIGGER tenant_moved AFTER UPDATE OF waiting, holding ON tenant
WHEN (OLD.waiting > 0) <> (NEW.waiting > 0) OR (OLD.holding > 0) <> (NEW.holding > 0) BEGIN
    UPDATE partition SET
        turns = turns - (OLD.waiting > 0) + (NEW.waiting > 0),
        debts = debts - (OLD.waiting = 0 AND OLD.holding = 0) + (NEW.waiting = 0 AND NEW.holding = 0)
    WHERE id = NEW.partition;
END;
CREATE TRIGGER tenant_went AFTER DELETE ON tenant BEGIN
    UPDATE partition SET debts = debts - 1 WHERE id = OLD.partition;
END;

-- `_place`: after a ticket came into a tenant's line (1) or out of it (-1).
CREATE VIEW do_place (partition, name, came) AS VALUES (0, 0, 0);
CREATE TRIGGER place INSTEAD OF INSERT ON do_place WHEN NEW.name IS NOT NULL BEGIN
    UPDATE tenant SET
        waiting = waiting + NEW.came,
        first = (
            SELECT arrival FROM ticket
            WHERE state = 'waiting' AND partition = NEW.partition AND line = NEW.name
            ORDER BY score, arrival LIMIT 1
        ),
        last = (
            SELECT arrival FROM ticket
            WHERE state = 'waiting' AND partition = NEW.partition AND line = NEW.name
            ORDER BY score DESC, arrival DESC LIMIT 1
        )
    WHERE partition = NEW.partition AND name = NEW.name;
END;

-- `FairQueue.add`: a tenant that becomes active starts at V or above.
CREATE VIEW do_join (partition, name, share, arrival) AS VALUES (0, 0, 0, 0);
CREATE TRIGGER join_turns INSTEAD OF INSERT ON do_join WHEN NEW.name IS NOT NULL BEGIN
    INSERT INTO do_forgive VALUES (NEW.partition);
    INSERT INTO tenant (partition, name, share, tag, born)
    VALUES (
        NEW.partition, NEW.name, NEW.share,
        (SELECT virtual FROM partition WHERE id = NEW.partition), NEW.arrival
    )
    ON CONFLICT DO UPDATE SET
        share = excluded.share,
        tag = CASE WHEN waiting = 0 AND holding = 0 THEN max(tag, excluded.tag) ELSE tag END;
    INSERT INTO do_place VALUES (NEW.partition, NEW.name, 1);
END;

-- `FairQueue.granted`: charge what the hold is expected to cost; V leaves out what is only expected.
CREATE VIEW do_charge (ticket, partition, name, permits) AS VALUES (0, 0, 0, 0);
CREATE TRIGGER charge INSTEAD OF INSERT ON do_charge WHEN NEW.name IS NOT NULL BEGIN
    UPDATE partition SET virtual = max(virtual, (
        SELECT tag - advanced FROM tenant WHERE partition = NEW.partition AND name = NEW.name
    )) WHERE id = NEW.partition;
    UPDATE ticket SET charged = (
        SELECT CASE NEW.permits WHEN 0 THEN capacity ELSE NEW.permits END * mean_hold
        FROM gate WHERE partition = NEW.partition
    ) / (SELECT share FROM tenant WHERE partition = NEW.partition AND name = NEW.name)
    WHERE id = NEW.ticket;
    UPDATE tenant SET
        tag = tag + (SELECT charged FROM ticket WHERE id = NEW.ticket),
        advanced = advanced + (SELECT charged FROM ticket WHERE id = NEW.ticket),
        holding = holding + 1
    WHERE partition = NEW.partition AND name = NEW.name;
    INSERT INTO do_forgive VALUES (NEW.partition);
    INSERT INTO do_place VALUES (NEW.partition, NEW.name, -1);
END;

-- `FairQueue.released`: correct that to what it did cost.
CREATE VIEW do_correct (partition, name, permits, ticks, charged) AS VALUES (0, 0, 0, 0, 0);
CREATE TRIGGER correct INSTEAD OF INSERT ON do_correct WHEN NEW.name IS NOT NULL BEGIN
    UPDATE tenant SET
        tag = tag + (
            CASE NEW.permits
                WHEN 0 THEN (SELECT capacity FROM gate WHERE partition = NEW.partition) ELSE NEW.permits
            END * NEW.ticks / share - NEW.charged
        ),
        advanced = CASE WHEN holding > 1 THEN advanced - NEW.charged ELSE 0.0 END,
        holding = holding - 1
    WHERE partition = NEW.partition AND name = NEW.name;
    INSERT INTO do_forgive VALUES (NEW.partition);
END;

-- === 5. The estimate =============================================================================

-- Note with a ticket how long one for so many permits, with so many tickets before it, would wait:
-- ((permits ahead + those it asks for beyond one) * mean hold + what is left of the holders') / limit,
-- and never before the pace lets it in (docs/decisions/0003-estimate.md). NULL: too little is known.
CREATE VIEW do_foresee (ticket, partition, position, permits, now) AS VALUES (0, 0, 0, 0, 0);
CREATE TRIGGER foresee INSTEAD OF INSERT ON do_foresee BEGIN
    UPDATE ticket SET foreseen = (
        SELECT CASE
            WHEN shut THEN NULL
            WHEN mean_hold <= 0 THEN CASE WHEN paced > 0 THEN CAST(paced AS REAL) END
            ELSE max(
                (
                    (
                        CASE WHEN waiting > 0 THEN NEW.position * (1 + CAST(beyond AS REAL) / waiting) ELSE 0.0 END
                        + CASE NEW.permits WHEN 0 THEN capacity ELSE NEW.permits END - 1
                    ) * mean_hold
                    + CASE
                        WHEN held >= 1 << 40 THEN mean_hold / 2
                        WHEN held = 0 THEN 0.0
                        ELSE max(0.0, mean_hold - NEW.now + average_grant)
                    END
                ) / capacity,
                CAST(paced AS REAL)
            )
        END
        FROM (
            SELECT
                *,
                opening + NEW.position * coalesce(pace, 0) - NEW.now AS paced,
                CAST(since * holders + since_then AS REAL) / holders AS average_grant
            FROM gate WHERE partition = NEW.partition
        )
    ) WHERE id = NEW.ticket;
END;

-- About how many tickets will be granted before one that has just been queued (`ahead_of`). It came last, so
-- counted are those that it overtakes: nobody, without a head start; where they are many, those before it.
CREATE VIEW do_look_ahead (ticket, partition, permits, now) AS VALUES (0, 0, 0, 0);
CREATE TRIGGER look_ahead INSTEAD OF INSERT ON do_look_ahead BEGIN
    INSERT INTO do_foresee VALUES (
        NEW.ticket, NEW.partition,
        (
            SELECT CASE p.ordering
                WHEN 'lifo' THEN 0
                WHEN 'fifo' THEN (
                    SELECT CASE
                        WHEN overtaken < 64 THEN p.waiting - 1 - overtaken
                        ELSE (
                            SELECT count(*) FROM ticket
                            WHERE state = 'waiting' AND partition = p.id AND line IS NULL
                                AND score <= t.score AND (score, arrival) < (t.score, t.arrival)
                        )
                    END
                    FROM (
                        SELECT count(*) AS overtaken FROM (
                            SELECT 1 FROM ticket
                            WHERE state = 'waiting' AND partition = p.id AND line IS NULL
                                AND score >= t.score AND (score, arrival) > (t.score, t.arrival)
                            LIMIT 64
                        )
                    )
                )
                ELSE (
                    SELECT min(p.waiting - 1, rank + others) FROM (
                        SELECT
                            rank,
                            -- rounded to the even, as Python does
                            CASE WHEN seen > 0 THEN ahead * (p.turns - 1) / seen + (
                                2 * (ahead * (p.turns - 1) % seen) > seen
                                OR (
                                    2 * (ahead * (p.turns - 1) % seen) = seen
                                    AND ahead * (p.turns - 1) / seen % 2 = 1
                                )
                            ) ELSE 0 END AS others
                        FROM (
                            SELECT rank, count(other_waiting) AS seen, sum(min(
                                other_waiting,
                                CAST(theirs AS INTEGER) + (theirs > CAST(theirs AS INTEGER)) - behind
                            )) AS ahead
                            FROM (
                                -- For each turn of this tenant another has as many as its share says.
                                SELECT
                                    mine.rank, o.waiting AS other_waiting,
                                    (mine.rank + 1) * o.share / mine.share AS theirs,
                                    (o.tag, o.first) > (mine.tag, mine.first) AS behind
                                FROM (
                                    SELECT
                                        name, share, tag, first,
                                        waiting - 1 - (
                                            SELECT count(*) FROM ticket
                                            WHERE state = 'waiting' AND partition = p.id AND line = t.line
                                                AND score >= t.score
                                                AND (score, arrival) > (t.score, t.arrival)
                                        ) AS rank
                                    FROM tenant WHERE partition = p.id AND name = t.line
                                ) AS mine
                                LEFT JOIN (
                                    SELECT name, share, tag, first, waiting FROM tenant
                                    WHERE partition = p.id AND waiting > 0 ORDER BY tag, first LIMIT 64
                                ) AS o ON o.name <> mine.name
                            )
                        )
                    )
                )
            END
            FROM partition AS p CROSS JOIN ticket AS t WHERE p.id = NEW.partition AND t.id = NEW.ticket
        ),
        NEW.permits, NEW.now
    );
END;

-- What a ticket met that is refused: the outlook of one for one permit that would enter now.
CREATE VIEW do_tell (ticket, guard, partition, reason, now) AS VALUES (0, 0, 0, 0, 0);
CREATE TRIGGER tell INSTEAD OF INSERT ON do_tell BEGIN
    INSERT INTO do_foresee VALUES (
        NEW.ticket, NEW.partition,
        (SELECT CASE ordering WHEN 'lifo' THEN 0 ELSE waiting END FROM partition WHERE id = NEW.partition),
        1, NEW.now
    );
    UPDATE ticket SET
        (foreseen, met_waiting, met_capacity) = (
            SELECT
                CASE
                    WHEN waiting = 0 AND held < capacity AND NOT shut THEN max(0.0, CAST(opening - NEW.now AS REAL))
                    ELSE ticket.foreseen
                END,
                waiting, capacity
            FROM gate WHERE partition = NEW.partition
        )
    WHERE id = NEW.ticket;
    INSERT INTO refusal VALUES (NEW.guard, NEW.reason, 1) ON CONFLICT DO UPDATE SET count = count + 1;
END;

-- === 6. The books ================================================================================
-- Occupancy changes with the ticket's row that causes it, and nowhere else: `granted` is set when a waiting
-- ticket is granted, `ended` when it stops to hold, `gone` when it stops to wait otherwise.

CREATE TRIGGER ticket_granted AFTER UPDATE OF granted ON ticket BEGIN
    INSERT INTO do_charge VALUES (NEW.id, NEW.partition, NEW.line, NEW.permits);
    UPDATE partition SET
        held = held + CASE NEW.permits WHEN 0 THEN 1 << 40 ELSE NEW.permits END,
        holders = holders + 1,
        since = CASE holders WHEN 0 THEN NEW.granted ELSE since END,
        since_then = CASE holders WHEN 0 THEN 0 ELSE since_then + NEW.granted - since END,
        waiting = waiting - 1,
        beyond = beyond - max(0, NEW.permits - 1),
        exclusive = exclusive - (NEW.permits = 0),
        next_grant = NEW.granted + 1000,
        tat = coalesce(max(tat, NEW.at) + (SELECT pace FROM guard WHERE id = NEW.guard), tat)
    WHERE id = NEW.partition;
END;

CREATE TRIGGER ticket_ended AFTER UPDATE OF ended ON ticket BEGIN
    UPDATE partition SET
        held = held - CASE NEW.permits WHEN 0 THEN 1 << 40 ELSE NEW.permits END,
        holders = holders - 1,
        since_then = since_then - NEW.granted + since,
        -- as `retire` has it
        idle_from = CASE
            WHEN key IS NOT NULL AND holders = 1 AND waiting = 0 AND NOT paused AND override IS NULL
            THEN max(tat, next_grant)
        END
    WHERE id = NEW.partition;
    INSERT INTO do_correct VALUES (
        NEW.partition, NEW.line, NEW.permits, max(0, NEW.ended - NEW.granted), NEW.charged
    );
    -- What was broken off says nothing of how long work takes; what took place took a tick at least.
    UPDATE guard SET ended = ended + 1 WHERE NEW.state <> 'released' AND id = NEW.guard;
    UPDATE guard SET
        ended = ended + 1,
        batch = batch + 1,
        batch_ticks = batch_ticks + max(1, NEW.ended - NEW.granted),
        batch_text = batch_text || (NEW.granted - NEW.arrival) || ' ' || max(1, NEW.ended - NEW.granted) || ' '
    WHERE NEW.state = 'released' AND id = NEW.guard;
    UPDATE partition SET ordering = (SELECT ordering FROM guard WHERE id = NEW.guard)
    WHERE NEW.permits = 0 AND id = NEW.partition AND held = 0 AND waiting = 0
        AND ordering <> (SELECT ordering FROM guard WHERE id = NEW.guard);
END;

-- The mean of the first five, then halfway to the mean of each sixteen.
CREATE TRIGGER batch_is_full AFTER UPDATE OF batch ON guard
WHEN NEW.batch = CASE NEW.batches WHEN 0 THEN 5 ELSE 16 END BEGIN
    REPLACE INTO recent VALUES (NEW.id * 64 + NEW.batches % 64, NEW.batch_text);
    UPDATE guard SET
        mean_hold = CASE batches
            WHEN 0 THEN CAST(batch_ticks AS REAL) / 5 ELSE (mean_hold + CAST(batch_ticks AS REAL) / 16) / 2
        END,
        batches = batches + 1, batch = 0, batch_ticks = 0, batch_text = ''
    WHERE id = NEW.id;
END;

CREATE TRIGGER ticket_gone AFTER UPDATE OF gone ON ticket BEGIN
    UPDATE partition SET
        waiting = waiting - 1,
        beyond = beyond - max(0, NEW.permits - 1),
        exclusive = exclusive - (NEW.permits = 0)
    WHERE id = NEW.partition;
    INSERT INTO do_place VALUES (NEW.partition, NEW.line, -1);
END;

CREATE TRIGGER ticket_refused AFTER UPDATE OF reason ON ticket BEGIN
    INSERT INTO do_tell VALUES (NEW.id, NEW.guard, NEW.partition, NEW.reason, NEW.at);
END;

CREATE TRIGGER partition_reordered AFTER UPDATE OF ordering ON partition BEGIN
    DELETE FROM tenant WHERE partition = NEW.id;
    UPDATE partition SET virtual = 0 WHERE id = NEW.id;
END;

CREATE TRIGGER partition_deleted AFTER DELETE ON partition BEGIN
    UPDATE guard SET keys = keys - 1, floor = max(floor, OLD.next_grant) WHERE id = OLD.guard;
    DELETE FROM tenant WHERE partition = OLD.id;
END;

-- === 7. The steps of an operation ================================================================

-- `advance`: grant in order while permits are free, at most so many, as SQLite nests triggers a thousand
-- deep; whoever finds that many granted advances again.
CREATE VIEW do_advance (partition, now, step, grants) AS VALUES (0, 0, 0, 0);
CREATE TRIGGER advance INSTEAD OF INSERT ON do_advance
WHEN NEW.grants > 0 AND EXISTS (
    SELECT 1 FROM gate
    WHERE partition = NEW.partition AND waiting > 0 AND NOT shut AND opening <= NEW.now
        AND (held = 0 OR held < capacity)
) BEGIN
    INSERT INTO do_grant VALUES (
        NEW.partition, (SELECT ticket FROM head WHERE partition = NEW.partition), NEW.now, NEW.step, NEW.grants
    );
END;

CREATE VIEW do_grant (partition, ticket, now, step, grants) AS VALUES (0, 0, 0, 0, 0);
CREATE TRIGGER grant_first INSTEAD OF INSERT ON do_grant
WHEN EXISTS (
    SELECT 1 FROM gate CROSS JOIN ticket AS t
    WHERE gate.partition = NEW.partition AND t.id = NEW.ticket
        AND (held = 0 OR (t.permits > 0 AND held + t.permits <= capacity))
) BEGIN
    UPDATE ticket SET
        state = 'held', at = NEW.now,
        granted = (SELECT max(next_grant, NEW.now) FROM partition WHERE id = NEW.partition),
        decided_by = nullif(NEW.step, id)
    WHERE id = NEW.ticket;
    INSERT INTO do_advance VALUES (NEW.partition, NEW.now, NEW.step, NEW.grants - 1);
END;

-- `retire`: note from when on nothing about the partition of a key would be missed. From then it counts as
-- gone; its row is used again, or deleted when another key is opened.
CREATE VIEW do_retire (partition, now) AS VALUES (0, 0);
CREATE TRIGGER retire INSTEAD OF INSERT ON do_retire
WHEN (
    SELECT key IS NOT NULL AND held = 0 AND waiting = 0 AND NOT paused AND override IS NULL
    FROM partition WHERE id = NEW.partition
) BEGIN
    UPDATE partition SET idle_from = max(tat, next_grant) WHERE id = NEW.partition;
END;

-- Make a partition, unless it is there or too many are. Where there are many, some are deleted by the way that
-- count as gone, those first that were used least recently: more than are made, so that few stay that nobody uses.
CREATE VIEW do_open (guard, key, now, always) AS VALUES (0, 0, 0, 0);
CREATE TRIGGER open_key INSTEAD OF INSERT ON do_open
WHEN NOT EXISTS (
    SELECT 1 FROM partition
    WHERE guard = NEW.guard AND key IS NEW.key AND (
        idle_from IS NULL OR idle_from > NEW.now OR (
            last_arrival < NEW.now AND ordering <> 'fair'
            AND (SELECT NEW.always OR keys <= max_keys FROM guard WHERE id = NEW.guard)
        )
    )
) BEGIN
    DELETE FROM partition WHERE guard = NEW.guard AND key = NEW.key;
    DELETE FROM partition WHERE id IN (
        SELECT id FROM partition WHERE guard = NEW.guard AND idle_from <= NEW.now ORDER BY idle_from
        LIMIT (SELECT CASE WHEN keys >= min(max_keys, 256) THEN 64 ELSE 0 END FROM guard WHERE id = NEW.guard)
    );
    INSERT INTO partition (guard, key, ordering, next_grant)
    SELECT id, NEW.key, ordering, floor FROM guard
    WHERE id = NEW.guard AND (NEW.always OR NEW.key IS NULL OR keys < max_keys);
    UPDATE guard SET keys = keys + 1 WHERE NEW.key IS NOT NULL AND changes() > 0 AND id = NEW.guard;
END;

-- `settle`: follow a change of the rules: refuse what can't fit any more, grant what now can.
CREATE VIEW do_settle (partition, now, step) AS VALUES (0, 0, 0);
CREATE TRIGGER settle INSTEAD OF INSERT ON do_settle BEGIN
    UPDATE partition SET ordering = (SELECT ordering FROM guard WHERE id = partition.guard)
    WHERE id = NEW.partition AND held = 0 AND waiting = 0
        AND ordering <> (SELECT ordering FROM guard WHERE id = partition.guard);
    UPDATE partition SET
        idle_from = NULL,
        tat = coalesce(
            min(tat, NEW.now + (SELECT burst * pace FROM guard WHERE id = partition.guard)), 0
        )
    WHERE id = NEW.partition;
    INSERT INTO do_turn_away
    SELECT t.id, 'too_large', NEW.now, NEW.step
    FROM gate AS p CROSS JOIN ticket AS t ON t.partition = p.partition
    WHERE p.partition = NEW.partition AND p.beyond > 0 AND t.state = 'waiting' AND t.permits > p.capacity
    ORDER BY t.score, t.arrival;
    INSERT INTO do_advance VALUES (NEW.partition, NEW.now, NEW.step, 400);
    INSERT INTO do_retire VALUES (NEW.partition, NEW.now);
END;

-- `_turn_away`: refuse a ticket that waits.
CREATE VIEW do_turn_away (ticket, reason, now, step) AS VALUES (0, 0, 0, 0);
CREATE TRIGGER turn_away INSTEAD OF INSERT ON do_turn_away WHEN NEW.reason IS NOT NULL BEGIN
    UPDATE ticket SET state = 'refused', at = NEW.now, gone = NEW.now, decided_by = nullif(NEW.step, id)
    WHERE id = NEW.ticket AND state = 'waiting';
    UPDATE ticket SET reason = NEW.reason WHERE changes() > 0 AND id = NEW.ticket;
END;

-- `refuse_at_the_door`: a ticket that has just been queued, or another in its place, if it had better not
-- wait. First: who is surplus in a full queue.
CREATE VIEW do_judge (ticket, partition, permits, patience, within, surplus, now) AS VALUES (0, 0, 0, 0, 0, 0, 0);
CREATE TRIGGER judge INSTEAD OF INSERT ON do_judge
WHEN (NEW.patience IS NOT NULL OR NEW.surplus IS NOT NULL)
    AND (SELECT state = 'waiting' FROM ticket WHERE id = NEW.ticket) BEGIN
    INSERT INTO do_weigh VALUES (NEW.ticket, NEW.partition, NEW.permits, NEW.patience, NEW.surplus, NEW.now);
    INSERT INTO do_turn_away VALUES (
        NEW.ticket,
        (
            SELECT CASE
                WHEN NEW.surplus = NEW.ticket THEN 'full'
                WHEN NEW.patience = 0 THEN CASE WHEN p.shut THEN 'paused' ELSE 'timeout' END
                WHEN t.foreseen > NEW.patience OR t.foreseen + p.mean_hold > NEW.within THEN 'hopeless'
            END
            FROM gate AS p CROSS JOIN ticket AS t WHERE p.partition = NEW.partition AND t.id = NEW.ticket
        ),
        NEW.now, NEW.ticket
    );
    INSERT INTO do_displace VALUES (NEW.ticket, NEW.partition, NEW.surplus, NEW.now);
END;

-- Only where the wait matters is it foreseen; one probe waiter is always let in.
CREATE VIEW do_weigh (ticket, partition, permits, patience, surplus, now) AS VALUES (0, 0, 0, 0, 0, 0);
CREATE TRIGGER weigh INSTEAD OF INSERT ON do_weigh
WHEN NEW.patience > 0 AND NEW.surplus IS NOT NEW.ticket
    AND (SELECT waiting > 1 FROM partition WHERE id = NEW.partition) BEGIN
    INSERT INTO do_look_ahead VALUES (NEW.ticket, NEW.partition, NEW.permits, NEW.now);
END;

CREATE VIEW do_displace (ticket, partition, surplus, now) AS VALUES (0, 0, 0, 0);
CREATE TRIGGER displace INSTEAD OF INSERT ON do_displace
WHEN NEW.surplus IS NOT NULL AND (SELECT state = 'waiting' FROM ticket WHERE id = NEW.ticket) BEGIN
    INSERT INTO do_turn_away VALUES (NEW.surplus, 'full', NEW.now, NEW.ticket);
    -- It may have been in the way of those behind it.
    INSERT INTO do_advance VALUES (NEW.partition, NEW.now, NEW.ticket, 400);
END;

-- === 8. Enter ====================================================================================

-- The columns that a caller gives are the ticket's terms. `wait` = 0: what can't be granted at once leaves
-- no trace. Sent again, a ticket has its first answer already.
CREATE VIEW op_enter (
    id, guard, key, permits, patience, priority, tenant, share, label, within, wait, now
) AS VALUES (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
CREATE TRIGGER enter INSTEAD OF INSERT ON op_enter BEGIN
    INSERT INTO do_open_before VALUES (NEW.id, NEW.guard, NEW.key, NEW.now);
    -- Most find a permit free and nobody waiting: they would be queued, and granted at once.
    INSERT OR IGNORE INTO ticket (
        id, guard, partition, state, permits, score, arrival, granted, at, share, tenant, label
    )
    SELECT
        NEW.id, NEW.guard, partition, 'held', NEW.permits, 0,
        max(last_arrival + 1, NEW.now), max(next_grant, NEW.now), NEW.now, NEW.share, NEW.tenant, NEW.label
    FROM gate
    WHERE guard = NEW.guard AND key IS NEW.key
        AND waiting = 0 AND NOT shut AND opening <= NEW.now AND NEW.permits <= capacity
        AND (held = 0 OR (NEW.permits > 0 AND held + NEW.permits <= capacity))
        AND ordering <> 'fair' AND ordering = declared_ordering;
    UPDATE partition SET
        held = held + CASE NEW.permits WHEN 0 THEN 1 << 40 ELSE NEW.permits END,
        holders = holders + 1,
        since = CASE holders WHEN 0 THEN max(next_grant, NEW.now) ELSE since END,
        since_then = CASE holders WHEN 0 THEN 0 ELSE since_then + max(next_grant, NEW.now) - since END,
        last_arrival = max(last_arrival + 1, NEW.now),
        next_grant = max(next_grant, NEW.now) + 1000,
        tat = coalesce(max(tat, NEW.now) + (SELECT pace FROM guard WHERE id = NEW.guard), tat),
        idle_from = NULL
    WHERE changes() > 0 AND guard = NEW.guard AND key IS NEW.key;
    INSERT INTO do_enter VALUES (
        NEW.id, NEW.guard, NEW.key,
        NEW.permits, NEW.patience, NEW.priority, NEW.tenant, NEW.share, NEW.label, NEW.within, NEW.wait, NEW.now
    );
END;

-- The partition is there already, as a rule; a ticket that is sent again needs none.
CREATE VIEW do_open_before (id, guard, key, now) AS VALUES (0, 0, 0, 0);
CREATE TRIGGER open_before INSTEAD OF INSERT ON do_open_before
WHEN NOT EXISTS (
    SELECT 1 FROM partition
    WHERE guard = NEW.guard AND key IS NEW.key AND (idle_from IS NULL OR idle_from > NEW.now)
) AND NOT EXISTS (SELECT 1 FROM ticket WHERE id = NEW.id) BEGIN
    INSERT INTO do_open VALUES (NEW.guard, NEW.key, NEW.now, 0);
END;

CREATE VIEW do_enter (
    id, guard, key, permits, patience, priority, tenant, share, label, within, wait, now
) AS VALUES (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
CREATE TRIGGER enter_otherwise INSTEAD OF INSERT ON do_enter
WHEN NOT EXISTS (SELECT 1 FROM ticket WHERE id = NEW.id) BEGIN
    INSERT INTO do_queue VALUES (
        NEW.id, NEW.guard, NEW.key, (SELECT id FROM partition WHERE guard = NEW.guard AND key IS NEW.key),
        NEW.permits, NEW.patience, NEW.priority, NEW.tenant, NEW.share, NEW.label, NEW.within, NEW.wait, NEW.now
    );
END;

CREATE VIEW do_queue (
    id, guard, key, partition, permits, patience, priority, tenant, share, label, within, wait, now
) AS VALUES (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
-- Too many keys are in use.
CREATE TRIGGER queue_nowhere INSTEAD OF INSERT ON do_queue WHEN NEW.partition IS NULL BEGIN
    INSERT INTO ticket (
        id, guard, state, permits, score, arrival, at, reason, met_waiting, met_capacity, share, tenant, label
    )
    SELECT
        NEW.id, id, 'refused', NEW.permits, 0, NEW.now, NEW.now, 'too_many_keys', 0, coalesce(override, capacity),
        NEW.share, NEW.tenant, NEW.label
    FROM guard WHERE id = NEW.guard;
    INSERT INTO refusal VALUES (NEW.guard, 'too_many_keys', 1) ON CONFLICT DO UPDATE SET count = count + 1;
END;
-- The others: in a partition that is advanced first. Who asks for more than there is isn't queued.
CREATE TRIGGER queue INSTEAD OF INSERT ON do_queue WHEN NEW.partition IS NOT NULL BEGIN
    INSERT INTO do_advance VALUES (NEW.partition, NEW.now, NEW.id, 400);
    UPDATE partition SET ordering = (SELECT ordering FROM guard WHERE id = NEW.guard)
    WHERE id = NEW.partition AND held = 0 AND waiting = 0
        AND ordering <> (SELECT ordering FROM guard WHERE id = NEW.guard)
        AND NEW.permits <= (SELECT capacity FROM gate WHERE partition = NEW.partition);
    INSERT INTO ticket (id, guard, partition, state, permits, line, score, arrival, at, share, tenant, label)
    SELECT
        NEW.id, NEW.guard, partition, CASE WHEN NEW.permits > capacity THEN 'new' ELSE 'waiting' END, NEW.permits,
        CASE ordering WHEN 'fair' THEN NEW.tenant END,
        CASE ordering
            WHEN 'lifo' THEN -max(last_arrival + 1, NEW.now)
            ELSE max(last_arrival + 1, NEW.now) - NEW.priority
        END,
        max(last_arrival + 1, NEW.now), NEW.now, NEW.share, NEW.tenant, NEW.label
    FROM gate WHERE partition = NEW.partition;
    INSERT INTO do_wait VALUES (
        NEW.id, NEW.partition, NEW.permits, NEW.patience, NEW.tenant, NEW.share, NEW.within, NEW.wait, NEW.now
    );
    UPDATE ticket SET state = 'refused', reason = 'too_large' WHERE id = NEW.id AND state = 'new';
    INSERT INTO do_retire VALUES (NEW.partition, NEW.now);
END;

CREATE VIEW do_wait (id, partition, permits, patience, tenant, share, within, wait, now)
AS VALUES (0, 0, 0, 0, 0, 0, 0, 0, 0);
CREATE TRIGGER wait INSTEAD OF INSERT ON do_wait WHEN (SELECT state = 'waiting' FROM ticket WHERE id = NEW.id) BEGIN
    UPDATE partition SET
        waiting = waiting + 1,
        last_arrival = max(last_arrival + 1, NEW.now),
        beyond = beyond + max(0, NEW.permits - 1),
        exclusive = exclusive + (NEW.permits = 0),
        idle_from = NULL
    WHERE id = NEW.partition;
    INSERT INTO do_join VALUES (
        NEW.partition, (SELECT line FROM ticket WHERE id = NEW.id), NEW.share,
        (SELECT last_arrival FROM partition WHERE id = NEW.partition)
    );
    INSERT INTO do_advance VALUES (NEW.partition, NEW.now, NEW.id, 400);
    UPDATE ticket SET state = 'withdrawn', gone = NEW.now WHERE NOT NEW.wait AND id = NEW.id AND state = 'waiting';
    DELETE FROM ticket WHERE NOT NEW.wait AND id = NEW.id AND state = 'withdrawn';
    INSERT INTO do_judge VALUES (
        NEW.id, NEW.partition, NEW.permits, NEW.patience, NEW.within,
        (
            SELECT CASE WHEN waiting > max_waiting THEN CASE ordering
                WHEN 'fifo' THEN NEW.id
                WHEN 'lifo' THEN (
                    SELECT id FROM ticket
                    WHERE state = 'waiting' AND partition = NEW.partition AND line IS NULL
                    ORDER BY score DESC, arrival DESC LIMIT 1
                )
                ELSE (
                    SELECT id FROM ticket
                    WHERE state = 'waiting' AND partition = NEW.partition AND line = (
                        SELECT name FROM tenant WHERE partition = NEW.partition AND waiting > 0
                        ORDER BY weight DESC, last DESC LIMIT 1
                    )
                    ORDER BY score DESC, arrival DESC LIMIT 1
                )
            END END
            FROM gate WHERE partition = NEW.partition AND NEW.wait
        ),
        NEW.now
    );
END;

-- === 9. Leave ====================================================================================

-- Release or withdraw; idempotent. `reason` is why a waiting ticket gives up, where it isn't simply
-- withdrawn: then its row stays, to be read. `finished`: the work ended by itself.
CREATE VIEW op_leave (id, reason, finished, now, step) AS VALUES (0, 0, 0, 0, 0);
-- Most hold, and their partition isn't fair: then to advance afterwards grants what advancing before would have.
CREATE TRIGGER leave_simply INSTEAD OF INSERT ON op_leave
WHEN EXISTS (SELECT 1 FROM ticket WHERE id = NEW.id AND state = 'held' AND line IS NULL) BEGIN
    UPDATE ticket SET
        state = CASE WHEN NEW.finished THEN 'released' ELSE 'broken' END, at = NEW.now, ended = NEW.now
    WHERE id = NEW.id;
    INSERT INTO do_advance VALUES ((SELECT partition FROM ticket WHERE id = NEW.id), NEW.now, NEW.step, 400);
    DELETE FROM ticket WHERE id = NEW.id;
END;
CREATE TRIGGER leave_otherwise INSTEAD OF INSERT ON op_leave
WHEN EXISTS (SELECT 1 FROM ticket WHERE id = NEW.id AND (state <> 'held' OR line IS NOT NULL)) BEGIN
    INSERT INTO do_leave VALUES (
        NEW.id, (SELECT partition FROM ticket WHERE id = NEW.id), NEW.reason, NEW.finished, NEW.now, NEW.step
    );
END;

CREATE VIEW do_leave (id, partition, reason, finished, now, step) AS VALUES (0, 0, 0, 0, 0, 0);
CREATE TRIGGER leave_somehow INSTEAD OF INSERT ON do_leave BEGIN
    INSERT INTO do_advance VALUES (NEW.partition, NEW.now, NEW.step, 400);
    UPDATE ticket SET
        state = CASE WHEN NEW.finished THEN 'released' ELSE 'broken' END, at = NEW.now, ended = NEW.now
    WHERE id = NEW.id AND state = 'held';
    UPDATE ticket SET state = 'withdrawn', at = NEW.now, gone = NEW.now
    WHERE NEW.reason IS NULL AND id = NEW.id AND state = 'waiting';
    INSERT INTO do_turn_away VALUES (NEW.id, NEW.reason, NEW.now, NEW.id);
    DELETE FROM ticket WHERE id = NEW.id AND state <> 'refused';
    INSERT INTO do_advance VALUES (NEW.partition, NEW.now, NEW.step, 400);
    INSERT INTO do_retire VALUES (NEW.partition, NEW.now);
END;

-- All that a dead client had, some 400 tickets at a time: those that wait first, so that nothing passes on to
-- them. Its row goes with its last ticket, and what it declared: if nobody else did, the others' rules stand.
CREATE VIEW op_bury (client, now, step) AS VALUES (0, 0, 0);
CREATE TRIGGER bury INSTEAD OF INSERT ON op_bury BEGIN
    INSERT INTO op_leave
    SELECT id, NULL, 0, NEW.now, NEW.step FROM ticket
    WHERE id BETWEEN NEW.client << 36 AND (NEW.client << 36) + (1 << 36) - 1 AND state = 'waiting'
    ORDER BY id LIMIT 400;
    INSERT INTO op_leave
    SELECT id, NULL, 0, NEW.now, NEW.step FROM ticket
    WHERE id BETWEEN NEW.client << 36 AND (NEW.client << 36) + (1 << 36) - 1 AND state IN ('held', 'lost')
        AND NOT EXISTS (
            SELECT 1 FROM ticket
            WHERE id BETWEEN NEW.client << 36 AND (NEW.client << 36) + (1 << 36) - 1 AND state = 'waiting'
        )
    ORDER BY id LIMIT 400;
    DELETE FROM ticket
    WHERE id BETWEEN NEW.client << 36 AND (NEW.client << 36) + (1 << 36) - 1 AND state = 'refused';
    DELETE FROM client WHERE id = NEW.client AND NOT EXISTS (
        SELECT 1 FROM ticket WHERE id BETWEEN NEW.client << 36 AND (NEW.client << 36) + (1 << 36) - 1
    );
    DELETE FROM declaration
    WHERE client = NEW.client AND NOT EXISTS (SELECT 1 FROM client WHERE id = NEW.client);
    INSERT INTO do_stand
    SELECT
        g.id, (SELECT id FROM declaration WHERE guard = g.id ORDER BY revision DESC, id LIMIT 1), NEW.now, NEW.step
    FROM guard AS g
    WHERE EXISTS (SELECT 1 FROM declaration WHERE guard = g.id)
        AND NOT EXISTS (SELECT 1 FROM declaration WHERE guard = g.id AND declared = g.declared);
END;

-- === 10. What time brings, and what operators do =================================================

CREATE VIEW op_advance (partition, now, step) AS VALUES (0, 0, 0);
CREATE TRIGGER advance_one INSTEAD OF INSERT ON op_advance BEGIN
    INSERT INTO do_advance VALUES (NEW.partition, NEW.now, NEW.step, 400);
END;

-- Take a ticket out, waiting or held, as it is; what was due besides is granted after.
CREATE VIEW op_evict (guard, id, now, step) AS VALUES (0, 0, 0, 0);
CREATE TRIGGER evict INSTEAD OF INSERT ON op_evict
WHEN (SELECT guard = NEW.guard AND state IN ('waiting', 'held') FROM ticket WHERE id = NEW.id) BEGIN
    UPDATE ticket SET state = 'lost', at = NEW.now, ended = NEW.now, decided_by = NEW.step
    WHERE id = NEW.id AND state = 'held';
    INSERT INTO do_turn_away VALUES (NEW.id, 'evicted', NEW.now, NEW.step);
    INSERT INTO do_advance VALUES (
        (SELECT partition FROM ticket WHERE id = NEW.id), NEW.now, NEW.step, 400
    );
    INSERT INTO do_retire VALUES ((SELECT partition FROM ticket WHERE id = NEW.id), NEW.now);
END;

-- An operator's limit (NULL clears it) and pause, for one key; key NULL: for all of them.
CREATE VIEW op_configure (guard, key, override, keep_override, paused, now, step) AS VALUES (0, 0, 0, 0, 0, 0, 0);
CREATE TRIGGER configure_key INSTEAD OF INSERT ON op_configure WHEN NEW.key IS NOT NULL BEGIN
    INSERT INTO do_open VALUES (NEW.guard, NEW.key, NEW.now, 1);
    INSERT INTO do_advance VALUES (
        (SELECT id FROM partition WHERE guard = NEW.guard AND key = NEW.key), NEW.now, NEW.step, 400
    );
    UPDATE partition SET
        override = CASE WHEN NEW.keep_override THEN override ELSE NEW.override END,
        paused = coalesce(NEW.paused, paused)
    WHERE guard = NEW.guard AND key = NEW.key;
    INSERT INTO do_settle VALUES (
        (SELECT id FROM partition WHERE guard = NEW.guard AND key = NEW.key), NEW.now, NEW.step
    );
END;
CREATE TRIGGER configure_guard INSTEAD OF INSERT ON op_configure WHEN NEW.key IS NULL BEGIN
    INSERT INTO do_advance
    SELECT id, NEW.now, NEW.step, 400 FROM partition WHERE guard = NEW.guard AND waiting > 0 ORDER BY id;
    UPDATE guard SET
        override = CASE WHEN NEW.keep_override THEN override ELSE NEW.override END,
        paused = coalesce(NEW.paused, paused)
    WHERE id = NEW.guard;
    INSERT INTO do_settle
    SELECT id, NEW.now, NEW.step FROM partition WHERE guard = NEW.guard ORDER BY id;
END;

-- Rules of a higher revision stand, and of the same those that came first, while somebody lives who declared them;
-- `force`: whatever the revision.
CREATE VIEW op_declare (
    name, declared, revision, capacity, max_waiting, ordering, pace, burst, max_keys, force, now, step
) AS VALUES (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
CREATE TRIGGER declare INSTEAD OF INSERT ON op_declare BEGIN
    INSERT OR IGNORE INTO guard (
        name, declared, revision, capacity, max_waiting, ordering, pace, burst, max_keys
    ) VALUES (
        NEW.name, NEW.declared, NEW.revision, NEW.capacity, NEW.max_waiting, NEW.ordering, NEW.pace, NEW.burst,
        NEW.max_keys
    );
    DELETE FROM declaration
    WHERE NEW.force AND guard = (SELECT id FROM guard WHERE name = NEW.name) AND client = NEW.step >> 36;
    INSERT OR IGNORE INTO declaration (
        guard, client, declared, revision, capacity, max_waiting, ordering, pace, burst, max_keys
    ) VALUES (
        (SELECT id FROM guard WHERE name = NEW.name), NEW.step >> 36, NEW.declared, NEW.revision, NEW.capacity,
        NEW.max_waiting, NEW.ordering, NEW.pace, NEW.burst, NEW.max_keys
    );
    INSERT INTO do_stand
    SELECT g.id, d.id, NEW.now, NEW.step
    FROM guard AS g JOIN declaration AS d
        ON d.guard = g.id AND d.declared = NEW.declared AND d.client = NEW.step >> 36
    WHERE g.name = NEW.name AND g.declared <> NEW.declared AND (
        NEW.force OR NEW.revision > g.revision
        OR NOT EXISTS (SELECT 1 FROM declaration WHERE guard = g.id AND declared = g.declared)
    );
END;

-- Have a guard go by another declaration; what was due before is granted before.
CREATE VIEW do_stand (guard, declaration, now, step) AS VALUES (0, 0, 0, 0);
CREATE TRIGGER stand INSTEAD OF INSERT ON do_stand BEGIN
    INSERT INTO do_advance
    SELECT id, NEW.now, NEW.step, 400 FROM partition WHERE guard = NEW.guard AND waiting > 0 ORDER BY id;
    UPDATE guard SET
        declared = d.declared, revision = d.revision, capacity = d.capacity, max_waiting = d.max_waiting,
        ordering = d.ordering, pace = d.pace, burst = d.burst, max_keys = d.max_keys
    FROM declaration AS d
    WHERE guard.id = NEW.guard AND d.id = NEW.declaration;
    INSERT INTO do_settle
    SELECT id, NEW.now, NEW.step FROM partition WHERE guard = NEW.guard ORDER BY id;
END;
