/* One shard: several claims open at once on one account, committed and aborted in any order, packets published in between;
 * kill -9 of the producer before any access to shared memory, and its successors.
 *
 * writer.hpp: claim_chunk, commit_claim, give_up, publish, finish; books.hpp: open_intent, open_claim, settle;
 * takeover.hpp: repair, resolve, resolve_claim, book_owed, free_open_claims. One row a packet; whatever thread ends a claim
 * has the shard's turn (gate.cpp), so that one process does all. Nobody reads: pins and unread packets are producer.pml's and
 * pins.pml's. Counters are one word here.
 *
 *   CHUNKS     as many claims may be open
 *   ITEMS      that the producer works through
 *   KILLS      of the producer
 *   SOURCE     1: items have marks and a successor repeats what lies above the shard's; 0: a live producer
 */
#ifndef CHUNKS
#define CHUNKS 3
#endif
#ifndef ITEMS
#define ITEMS 3
#endif
#ifndef KILLS
#define KILLS 2
#endif
#ifndef SOURCE
#define SOURCE 0
#endif
#define NEVER 255

bit writing[CHUNKS];
byte data[CHUNKS];        /* the packet's item */
byte sequence[CHUNKS];    /* of its header */
byte rows_before[CHUNKS];
byte slot[ITEMS];
byte head;
byte source;

/* ClaimRecord */
bit claim_open[CHUNKS];
bit claim_seen[CHUNKS];
byte claim_source[CHUNKS];
#ifdef MUTANT_VERSION_AT_CLAIM
byte claim_version[CHUNKS];
#endif

bit intent_open;
byte intent_sequence;
byte intent_version;
bit intent_seen;
byte intent_source;
byte intent_claim; /* chunk + 1, or 0 */

byte version;
byte seen;
byte published;
byte dropped;

/* What the model knows beyond the code. */
byte kills = KILLS;
byte announced; /* rows that the ring was told of, by a live producer */
byte committed;
byte holds[CHUNKS]; /* sequence of the chunk's packet, which nobody reads */

#define STEP(access) atomic { if :: kills > 0 -> kills--; goto dead :: true fi; access }
#define ADD(s, p, d) STEP(seen = seen + s; published = published + p; dropped = dropped + d; version++)
#define ANNOUNCED(rows) if :: !SOURCE -> announced = announced + rows :: else -> skip fi

#ifdef MUTANT_ANY_MARK_REPEATS
#define REPEATS(mark) (mark != 0)
#else
#define REPEATS(mark) (mark > source)
#endif

#define INTENT(number, with_seen, mark, claim) \
    STEP(intent_sequence = number; intent_version = version; intent_seen = with_seen; intent_source = mark; intent_claim = claim); \
    STEP(intent_open = 1)

#ifdef MUTANT_CLAIM_CLOSED_AFTER_INTENT
#define SETTLE(mark, claim) \
    if :: mark > source -> STEP(source = mark) :: else -> skip fi; \
    STEP(intent_open = 0); \
    if :: claim -> STEP(claim_open[claim - 1] = 0) :: else -> skip fi
#else
#define SETTLE(mark, claim) \
    if :: mark > source -> STEP(source = mark) :: else -> skip fi; \
    if :: claim -> STEP(claim_open[claim - 1] = 0) :: else -> skip fi; \
    STEP(intent_open = 0)
#endif

/* Nothing is under way: every packet up to the head is whole and in its place, every row is booked once. */
#define BOOKS_CLOSE \
    atomic { \
        assert(seen == published + dropped); \
        assert(SOURCE || seen == announced); \
        assert(!SOURCE || seen == source); \
        assert(published == committed && head == committed); \
        assert(!intent_open); \
        c = 0; \
        do \
        :: c < CHUNKS -> assert(!writing[c] && !claim_open[c]); c++ \
        :: else -> break \
        od; \
        i = 0; \
        do \
        :: i < head -> \
            assert(sequence[slot[i]] == i + 1 && rows_before[slot[i]] == i && data[slot[i]] != 0); \
            i++ \
        :: else -> break \
        od; \
        c = 0; i = 0 \
    }

proctype producer() {
    byte item, c, i, open, number, mark;
    bit with_seen, was_committed, was_booked;
    byte here;
    bit mine[CHUNKS];      /* this process's own: what is open */
    bit mine_seen[CHUNKS];
    byte mine_mark[CHUNKS];
#ifdef MUTANT_SEQUENCE_AT_CLAIM
    byte mine_sequence[CHUNKS];
    byte given;
#endif

start:
    /* Takeover::repair() */
    STEP(here = head);
    if
    :: intent_open ->
        was_committed = (here >= intent_sequence);
        was_booked = (version != intent_version);
        if
        :: !was_booked && was_committed -> ADD(intent_seen, 1, 0)
        :: !was_booked && !was_committed && !REPEATS(intent_source) -> ADD(intent_seen, 0, 1)
        :: else -> skip
        fi;
        if
        :: (was_booked || was_committed) && intent_source > source -> STEP(source = intent_source)
        :: else -> skip
        fi;
        if :: intent_claim != 0 -> STEP(claim_open[intent_claim - 1] = 0) :: else -> skip fi;
        STEP(intent_open = 0)
    :: else -> skip
    fi;
#ifdef MUTANT_OWED_BEFORE_CLAIMS
    if :: seen > published + dropped -> ADD(0, 0, seen - published - dropped) :: else -> skip fi;
#endif
#ifndef MUTANT_OPEN_CLAIMS_FORGOTTEN
    c = 0;
    do
    :: c < CHUNKS && claim_open[c] && REPEATS(claim_source[c]) -> STEP(claim_open[c] = 0); c++
    :: c < CHUNKS && claim_open[c] && !REPEATS(claim_source[c]) ->
#ifdef MUTANT_CRASH_WITHOUT_INTENT
        ADD(claim_seen[c], 0, 1);
        STEP(claim_open[c] = 0);
#else
        INTENT(NEVER, claim_seen[c], claim_source[c], c + 1);
        ADD(claim_seen[c], 0, 1);
        SETTLE(claim_source[c], (c + 1));
#endif
        c++
    :: c < CHUNKS && !claim_open[c] -> c++
    :: c == CHUNKS -> break
    od;
#endif
#ifndef MUTANT_OWED_BEFORE_CLAIMS
    if :: seen > published + dropped -> ADD(0, 0, seen - published - dropped) :: else -> skip fi;
#endif
    c = 0;
    do
    :: c < CHUNKS && writing[c] -> STEP(writing[c] = 0); c++
    :: c < CHUNKS && !writing[c] -> c++
    :: c == CHUNKS -> break
    od;
    BOOKS_CLOSE;
#if SOURCE
    STEP(item = source);
#else
    item = announced;
#endif
#ifdef MUTANT_SEQUENCE_AT_CLAIM
    given = here;
#endif
    do
    :: item >= ITEMS && open == 0 -> break
    :: item < ITEMS ->
        /* A chunk that nobody holds; which one is the policy's. */
        c = 0;
        do
        :: c < CHUNKS && (writing[c] || holds[c]) -> c++
        :: else -> break
        od;
#ifdef MUTANT_CLAIM_IGNORES_WRITING
        c = 0;
        do :: c < CHUNKS && holds[c] -> c++ :: else -> break od;
#endif
        if
        :: c == CHUNKS ->
            /* refuse() */
            item++;
            mark = (SOURCE -> item : 0);
            INTENT(NEVER, 1, mark, 0);
            ANNOUNCED(1);
            ADD(1, 0, 1);
            SETTLE(mark, 0)
        :: c < CHUNKS ->
            item++;
            mark = (SOURCE -> item : 0);
            with_seen = 1;
            /* claim_chunk() */
#if !SOURCE
            if :: true :: STEP(seen++; version++; announced++); with_seen = 0 fi;
#endif
            STEP(assert(!mine[c]); writing[c] = 1; data[c] = 0);
            STEP(claim_seen[c] = with_seen; claim_source[c] = mark);
#ifdef MUTANT_VERSION_AT_CLAIM
            claim_version[c] = version;
#endif
            STEP(claim_open[c] = 1; ANNOUNCED(with_seen));
            STEP(data[c] = item);
            mine[c] = 1; mine_seen[c] = with_seen; mine_mark[c] = mark; open++;
#ifdef MUTANT_SEQUENCE_AT_CLAIM
            given++; mine_sequence[c] = given;
#endif
        :: c < CHUNKS && open > 0 ->
            item++;
            mark = (SOURCE -> item : 0);
            /* publish(), while others are claimed */
            INTENT(here + 1, 1, mark, 0);
            ANNOUNCED(1);
            STEP(assert(!mine[c]); writing[c] = 1; data[c] = 0);
            STEP(data[c] = item; sequence[c] = here + 1; rows_before[c] = published);
            STEP(writing[c] = 0);
            STEP(slot[here] = c);
            STEP(head = here + 1; committed++; holds[c] = here + 1);
            here++;
#ifdef MUTANT_SEQUENCE_AT_CLAIM
            given++;
#endif
            ADD(1, 1, 0);
            SETTLE(mark, 0)
        fi
    :: open > 0 ->
        /* Any of them, whenever it was claimed. */
        atomic {
            c = 0;
            do
            :: !mine[c] -> c++
            :: mine[c] -> break
            :: mine[c] && i + 1 < open -> i++; c++
            od;
            i = 0
        }
        number = here + 1;
#ifdef MUTANT_SEQUENCE_AT_CLAIM
        number = mine_sequence[c];
#endif
        if
        :: true ->
            /* commit_claim() */
            INTENT(number, mine_seen[c], mine_mark[c], c + 1);
#ifdef MUTANT_VERSION_AT_CLAIM
            intent_version = claim_version[c];
#endif
            STEP(sequence[c] = number; rows_before[c] = published);
            STEP(writing[c] = 0);
            STEP(slot[number - 1] = c);
            STEP(head = number; committed++; holds[c] = number);
            here = number;
            ADD(mine_seen[c], 1, 0)
        :: true ->
            /* give_up() */
            INTENT(NEVER, mine_seen[c], mine_mark[c], c + 1);
            STEP(writing[c] = 0);
            ADD(mine_seen[c], 0, 1)
        fi;
        SETTLE(mine_mark[c], (c + 1));
        mine[c] = 0; mine_seen[c] = 0; mine_mark[c] = 0; open--
    od;
    BOOKS_CLOSE;
    goto gone;
dead:
    atomic {
        item = 0; c = 0; i = 0; open = 0; number = 0; mark = 0; with_seen = 0; was_committed = 0; was_booked = 0; here = 0;
        do
        :: c < CHUNKS -> mine[c] = 0; mine_seen[c] = 0; mine_mark[c] = 0; c++
        :: else -> break
        od;
        c = 0
    }
    goto start;
gone:
    skip
}

init { run producer() }
