/* One shard: kill -9 of the producer before any access to shared memory, its successors, the books, the end of the stream.
 *
 * takeover.hpp: resolve, book_owed, free_open_claims; overwrite.hpp, drop_new.hpp: begin, claim; books.hpp: open_intent, settle;
 * writer.hpp: finish, give_up, refuse, book, close; reader.hpp: take_over, restore_durable, gather, consumed, mark_durable,
 * settle, finalise. One account, one row a packet, one reader with one pin. Counters are one word here:
 * relacy proves Versioned<>, also half written.
 *
 *   CHUNKS     as many descriptor slots
 *   ITEMS      that the producer works through: packets, gaps, aborted claims, rows that are no packet
 *   KILLS      of the producer          READER_KILLS  of the reader
 *   SOURCE     1: items have marks and a successor repeats what no mark says is settled; 0: a live producer
 *   DROP_NEW   the policy; without it, overwrite
 */
#ifndef CHUNKS
#define CHUNKS 3
#endif
#ifndef ITEMS
#define ITEMS 4
#endif
#ifndef KILLS
#define KILLS 2
#endif
#ifndef READER_KILLS
#define READER_KILLS 0
#endif
#ifndef SOURCE
#define SOURCE 0
#endif
#define AFTER(c) (((c) + 1) % CHUNKS)
#define SLOT_OF(c) ((data[c] + CHUNKS - 1) % CHUNKS)
#define UNREAD(c) (data[c] > cursor && data[c] <= head && slot_chunk[SLOT_OF(c)] == c && slot_generation[SLOT_OF(c)] == generation[c])

mtype = { absent, attached, complete, attempt_over, finalised };

byte generation[CHUNKS];
bit writing[CHUNKS];
bit pins[CHUNKS];
byte slot_generation[CHUNKS]; /* 0: a tombstone */
byte slot_chunk[CHUNKS];
byte data[CHUNKS];
byte rows_before[CHUNKS];
byte head;
byte source;
mtype writer_state = absent;
mtype reader_state = absent;
bit producer_locked;

bit intent_open;
byte intent_sequence;
byte intent_version;
bit intent_seen;
byte intent_source;
bit intent_tombstone;

byte version;
byte seen;
byte published;
byte dropped;

byte cursor;
byte position;
byte durable;
byte lapped;
byte rolled_back;

/* What the model knows beyond the code. */
byte kills = KILLS;
byte reader_kills = READER_KILLS;
byte announced; /* rows that the ring was told of */
byte committed; /* packets that readers may see */
byte gaps;
byte settled;   /* item settled last */
byte storage;   /* rows that the reader's storage holds */
byte used;
byte newest;

#define STEP(access) atomic { if :: kills > 0 -> kills--; goto dead :: true fi; access }

#ifdef MUTANT_BOOKS_IN_TWO_STEPS
#define ADD(s, p, d) STEP(seen = seen + s; version++); STEP(published = published + p; dropped = dropped + d)
#else
#define ADD(s, p, d) STEP(seen = seen + s; published = published + p; dropped = dropped + d; version++)
#endif

/* An item comes to be, or to nothing: once, and in order. */
#if SOURCE
#define SETTLED assert(item == settled + 1); settled = item
#else
#define SETTLED skip
#endif

#define BOOKS_CLOSE \
    atomic { \
        assert(seen == published + dropped && seen == announced); \
        assert(published == committed && head == committed + gaps); \
        assert(!intent_open) \
    }

proctype producer() {
    byte item, c, next, passed, tried;
    bit found, with_seen, again, was_committed, was_booked;
    byte here; /* its own copy of the head */
#ifdef DROP_NEW
    byte newest_in[CHUNKS];
#endif
    byte s;

start:
    atomic { !producer_locked -> producer_locked = 1 }
    /* Takeover::repair() */
    STEP(here = head);
#ifndef MUTANT_FORGETS_INTENT
    if
    :: intent_open ->
        was_committed = (here >= intent_sequence);
#ifdef MUTANT_BOOKS_TWICE
        was_booked = 0;
#else
        was_booked = (version != intent_version);
#endif
        if
        :: !was_booked && was_committed && intent_tombstone -> ADD(intent_seen, 0, 1)
        :: !was_booked && was_committed && !intent_tombstone -> ADD(intent_seen, 1, 0)
        :: !was_booked && !was_committed && intent_source == 0 -> ADD(intent_seen, 0, 1)
        :: else -> skip
        fi;
#ifndef MUTANT_SOURCE_NOT_RAISED
        if
        :: (was_booked || was_committed) && intent_source > source -> STEP(source = intent_source)
        :: else -> skip
        fi;
#endif
        STEP(intent_open = 0)
    :: else -> skip
    fi;
#else
    STEP(intent_open = 0);
#endif
#ifndef MUTANT_OWED_FORGOTTEN
    if
    :: writer_state == attached && seen > published + dropped -> ADD(0, 0, seen - published - dropped)
    :: else -> skip
    fi;
#endif
#ifndef MUTANT_CLAIMS_STAY_OPEN
    c = 0;
    do
    :: c < CHUNKS && writing[c] -> STEP(generation[c]++; writing[c] = 0; pins[c] = 0); c++
    :: c < CHUNKS && !writing[c] -> c++
    :: c == CHUNKS -> break
    od;
#endif
    if :: here == 0 -> next = 0 :: else -> next = AFTER(slot_chunk[(here - 1) % CHUNKS]) fi;
#ifdef DROP_NEW
    /* DropNew::begin() */
    atomic {
        s = 0;
        do :: s < CHUNKS -> newest_in[s] = 0; s++ :: else -> break od;
#ifdef MUTANT_FORGETS_UNREAD
        s = here + 1;
#else
        s = (here > CHUNKS -> here - CHUNKS + 1 : 1);
#endif
        do :: s <= here -> newest_in[slot_chunk[(s - 1) % CHUNKS]] = s; s++ :: else -> break od;
        s = 0;
        passed = cursor
    }
#endif
    STEP(writer_state = attached);
    BOOKS_CLOSE;
    c = 0;
    do
    :: c < CHUNKS -> assert(!writing[c]); c++
    :: else -> break
    od;
    c = 0;
#if SOURCE
    STEP(item = source);
#else
    item = announced;
#endif
    /* A live producer that died may have an heir that only closes for it. */
#if !SOURCE
    if :: kills < KILLS -> again = 1 :: true -> again = 0 fi;
#endif
    do
    :: again || item >= ITEMS -> break
    :: else ->
        item++;
        /* What is seen is booked with the packet or, by a live producer that samples, before it. */
        with_seen = 1;
#if !SOURCE
        if
        :: true
        :: STEP(seen = seen + 1; version++; announced++); with_seen = 0
        fi;
#endif
#if SOURCE
        if
        :: true ->
            /* book() with a source: rows that are no packet. */
            STEP(intent_sequence = 255; intent_version = version; intent_seen = 0; intent_source = item; intent_tombstone = 0);
            STEP(intent_open = 1);
            STEP(seen++; dropped++; version++; announced++; SETTLED);
            goto settle
        :: true
        fi;
#endif
#ifndef MUTANT_INTENT_AFTER_HEAD
        STEP(intent_sequence = here + 1; intent_version = version; intent_seen = with_seen;
             intent_source = (SOURCE -> item : 0); intent_tombstone = 0);
        STEP(intent_open = 1; if :: with_seen && !SOURCE -> announced++ :: else -> skip fi);
#endif
        /* claim(): evict is pins.pml's */
        found = 0; tried = 0; c = next;
#ifdef DROP_NEW
        /* The code takes the chunk freed last, the model any that is free. */
        STEP(passed = cursor);
        do
        :: tried < CHUNKS && !found -> tried++; c = AFTER(c)
        :: tried < CHUNKS && !found && newest_in[c] <= passed && !pins[c] ->
            STEP(
                assert(!pins[c] && !UNREAD(c));
                found = 1; generation[c]++; writing[c] = 1
            )
        :: found || tried == CHUNKS -> break
        od;
#else
        do
        :: found || tried == CHUNKS -> break
        :: else ->
            tried++;
            STEP(
                if
                :: pins[c] -> c = AFTER(c)
                :: !pins[c] -> found = 1; generation[c]++; writing[c] = 1
                fi
            )
        od;
#endif
        if
        :: found ->
            STEP(data[c] = 0);
            STEP(data[c] = here + 1; rows_before[c] = published);
            if
            :: true ->
                STEP(writing[c] = 0; pins[c] = 0);
                STEP(slot_generation[here % CHUNKS] = generation[c]; slot_chunk[here % CHUNKS] = c);
                STEP(head = here + 1; committed++; if :: SOURCE -> announced++ :: else -> skip fi; SETTLED);
                here++;
                next = AFTER(c);
#ifdef DROP_NEW
                newest_in[c] = here;
#endif
#ifdef MUTANT_INTENT_AFTER_HEAD
                STEP(intent_sequence = here; intent_version = version; intent_seen = with_seen;
                     intent_source = (SOURCE -> item : 0); intent_tombstone = 0);
                STEP(intent_open = 1; if :: with_seen && !SOURCE -> announced++ :: else -> skip fi);
#endif
                ADD(with_seen, 1, 0)
            :: true ->
                /* give_up() */
                STEP(writing[c] = 0; pins[c] = 0);
                STEP(seen = seen + with_seen; dropped++; version++; if :: SOURCE -> announced++ :: else -> skip fi; SETTLED)
            fi
        :: else ->
            /* refuse() */
#ifdef DROP_NEW
            STEP(seen = seen + with_seen; dropped++; version++; if :: SOURCE -> announced++ :: else -> skip fi; SETTLED)
#else
            STEP(intent_tombstone = 1);
            STEP(slot_generation[here % CHUNKS] = 0; slot_chunk[here % CHUNKS] = (next + CHUNKS - 1) % CHUNKS);
            STEP(head = here + 1; gaps++; if :: SOURCE -> announced++ :: else -> skip fi; SETTLED);
            here++;
            ADD(with_seen, 0, 1)
#endif
        fi;
settle:
        if :: SOURCE && item > source -> STEP(source = item) :: else -> skip fi;
        STEP(intent_open = 0);
        BOOKS_CLOSE
    od;
    STEP(writer_state = (again -> attempt_over : complete));
#if SOURCE
    /* Killed behind its last act it comes again, finds nothing to do and closes again. */
    STEP(producer_locked = 0);
#else
    producer_locked = 0;
#endif
    goto gone;
dead:
    atomic {
        item = 0; c = 0; next = 0; passed = 0; tried = 0; found = 0; with_seen = 0; again = 0; was_committed = 0;
        was_booked = 0; here = 0; s = 0;
        producer_locked = 0
    }
    goto start;
gone:
    skip
}

#define READ(access) atomic { if :: reader_kills > 0 -> reader_kills--; goto dead :: true fi; access }

proctype reader() {
    byte next, c, g, d, b;
    bit good;

start:
    skip;
    /* take_over(): the lock, the epoch and the sweep are pins.pml's */
    c = 0;
    do :: c < CHUNKS -> READ(pins[c] = 0); c++ :: else -> break od;
    READ(next = (cursor < head -> cursor : head) + 1);
    READ(reader_state = attached);
    /* restore_durable() */
    READ(
        assert(storage <= position - lapped);
        durable = storage;
        rolled_back = position - lapped - storage
    );
    do
    :: next <= head ->
        READ(g = slot_generation[(next - 1) % CHUNKS]; c = slot_chunk[(next - 1) % CHUNKS]);
        if :: g == 0 -> next++; goto passed :: else -> skip fi;
        READ(
            if
            :: generation[c] == g && !writing[c] && !pins[c] -> good = 1; pins[c] = 1
            :: else -> good = 0
            fi
        );
        if :: !good -> next++; goto passed :: else -> skip fi;
        READ(d = data[c]; b = rows_before[c]; assert(d != 0));
        if
#ifdef MUTANT_BOOKED_COMES_AGAIN
        :: d == next ->
#else
        :: d == next && b + 1 > position ->
#endif
#ifdef MUTANT_CURSOR_BEFORE_BOOKS
            READ(cursor = next);
#endif
            /* consumed() */
            READ(
                assert(next > newest && rows_before[c] + 1 <= committed);
                newest = next;
                used++;
                lapped = lapped + b - position;
                position = b + 1
            );
            next++;
            READ(cursor = next - 1);
            if
            :: true ->
                /* What is consumed becomes durable, then is declared so. */
                READ(storage = position - lapped - rolled_back);
                READ(durable = storage)
            :: true
            fi
        :: else -> next++
        fi;
        READ(if :: generation[c] == g && pins[c] -> pins[c] = 0 :: else -> assert(false) fi);
passed:
        READ(cursor = next - 1)
#ifdef MUTANT_ENDS_UNREAD
    :: writer_state == complete || writer_state == attempt_over -> break
#else
    :: next > head && (writer_state == complete || writer_state == attempt_over) && cursor >= head -> break
#endif
    od;
    /* The order of workers/asysi/sae: durable, settle, declare, finalise. */
    READ(storage = position - lapped - rolled_back);
    READ(if :: published > position -> lapped = lapped + published - position; position = published :: else -> skip fi);
    READ(cursor = head);
    READ(durable = storage);
    READ(reader_state = finalised);
    goto gone;
dead:
    atomic { next = 0; c = 0; g = 0; d = 0; b = 0; good = 0 }
    goto start;
gone:
    skip
}

init {
    byte k;
    atomic { run producer(); run reader() }
    (_nr_pr == 1);
    atomic {
        BOOKS_CLOSE;
        assert(reader_state == finalised && (writer_state == complete || writer_state == attempt_over));
        assert(published == durable + lapped + rolled_back && durable == storage);
        assert(used == durable + rolled_back);
#ifdef DROP_NEW
        assert(lapped == 0);
#endif
#if SOURCE
        assert(settled == ITEMS && source == ITEMS);
#endif
        do :: k < CHUNKS -> assert(!pins[k] && !writing[k]); k++ :: else -> break od
    }
}
