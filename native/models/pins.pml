/* One shard: a writer that never waits, readers that pin, eviction, the readers' locks, kill -9 of readers anywhere.
 *
 * Every access to shared memory is one step, whole words as in the code (claim.hpp: take, evict; overwrite.hpp: scan;
 * writer.hpp: publish; reader.hpp: gather, try_pin, unpin, consumed, settle, take_over).
 * A reader may be killed before any of them. A packet is one row.
 *
 *   CHUNKS PINS READERS  the geometry; there are as many descriptor slots as chunks
 *   PACKETS    that the writer offers
 *   KILLS      of readers, in all
 *   HOSTILE    1: the last reader holds one pin more than it may
 *   INSTANCES  processes that want to be reader 0
 *   DROP_NEW   the policy; without it, overwrite
 *   ELSEWHERE  the last reader also holds a pin in another shard while this one evicts it
 */
#ifndef CHUNKS
#define CHUNKS 4
#endif
#ifndef PINS
#define PINS 1
#endif
#ifndef READERS
#define READERS 2
#endif
#ifndef PACKETS
#define PACKETS 4
#endif
#ifndef KILLS
#define KILLS 0
#endif
#ifndef HOSTILE
#define HOSTILE 0
#endif
#ifndef INSTANCES
#define INSTANCES 1
#endif
#define MOST (PINS + HOSTILE)
#ifdef DROP_NEW
#define DEPTH CHUNKS
#else
#define DEPTH (CHUNKS - READERS * PINS - 1)
#endif
#define BIT(r) (1 << (r))
#define AFTER(c) (((c) + 1) % CHUNKS)

/* ChunkState.word in its parts: a statement that touches two of them is atomic. */
byte generation[CHUNKS];
bit writing[CHUNKS];
byte pins[CHUNKS];
/* A slot: generation and chunk, or 0 and the tombstone's sequence. */
byte slot_generation[CHUNKS];
byte slot_chunk[CHUNKS];
/* Bytes of a chunk: its packet's sequence, 0 while they are being written, and the rows before it. */
byte data[CHUNKS];
byte rows_before[CHUNKS];
byte head;
byte published;
byte dropped;
byte epoch[READERS];
byte cursor[READERS];
bit locked[READERS];
byte position[READERS];
byte lapped[READERS];
bit finished;
#ifdef ELSEWHERE
byte elsewhere;
#endif

/* What the model knows beyond the code. */
byte believes[CHUNKS]; /* readers within their rights that rely on these bytes */
byte used[READERS];    /* packets consumed */
byte newest[READERS];  /* sequence consumed last */
byte kills = KILLS;
byte running;

proctype writer() {
    byte sequence, c, next, pinned, patience, tried, r, i, passed;
    byte held[READERS];
    bit found, evicted;
#ifdef DROP_NEW
    byte newest_in[CHUNKS]; /* sequence of each chunk's packet: unread when beyond `passed` */
    byte free = (1 << CHUNKS) - 1;
#endif
#ifndef MUTANT_EVICT_ONE_LOOK
    byte look[CHUNKS];
    byte era[READERS];
#endif

    do
    :: sequence == PACKETS -> break
    :: sequence < PACKETS ->
        sequence++;
        d_step { found = 0; evicted = 0; patience = READERS * PINS; }
again:  skip;
#ifdef DROP_NEW
        /* take_free(): the code takes the chunk freed last, the model any. */
        found = 0;
        tried = 0;
        do
        :: found -> break
        :: !found && free == 0 && tried == 1 -> break
        :: !found && free == 0 && tried == 0 ->
            /* collect() */
            tried = 1;
            passed = cursor[0];
            c = 0;
            do
            :: c == CHUNKS -> break
#ifdef MUTANT_DROP_NEW_ANY_CHUNK
            :: c < CHUNKS -> if :: pins[c] == 0 -> free = free | BIT(c) :: else -> skip fi; c++
#else
            :: c < CHUNKS ->
                if
                :: newest_in[c] <= passed && pins[c] == 0 -> free = free | BIT(c)
                :: newest_in[c] > passed || pins[c] != 0
                fi;
                c++
#endif
            od
        :: !found && free != 0 ->
            c = 0;
            do :: c < CHUNKS - 1 -> c++ :: free & BIT(c) -> break :: c == CHUNKS - 1 && !(free & BIT(c)) -> c = 0 od;
            free = free & ~BIT(c);
            atomic {
                /* What is free stays so. */
                assert(pins[c] == 0);
                if :: pins[c] == 0 -> found = 1; generation[c]++; writing[c] = 1 :: else -> skip fi
            }
        od;
        if
        :: !found && !evicted ->
            atomic {
                c = 0; pinned = 0;
                do
                :: c < CHUNKS -> pinned = pinned + (newest_in[c] <= passed -> 1 : 0); c++
                :: else -> break
                od;
                /* Consumed and not free: lingering. */
                if :: pinned <= PINS -> evicted = 1 :: else -> skip fi
            }
        :: else -> skip
        fi;
#else
        d_step { tried = 0; c = next; }
        do
        :: found || tried == CHUNKS || tried > patience -> break
        :: else ->
            tried++;
            /* take() */
#ifdef MUTANT_CLAIM_IGNORES_PINS
            atomic { found = 1; generation[c]++; writing[c] = 1; pins[c] = 0 }
#else
            if
            :: pins[c] == 0 ->
#ifdef MUTANT_CLAIM_NOT_ATOMIC
                atomic { found = 1; generation[c]++; writing[c] = 1; pins[c] = 0 }
#else
                atomic {
                    if
                    :: pins[c] == 0 -> found = 1; generation[c]++; writing[c] = 1
                    :: else -> c = AFTER(c)
                    fi
                }
#endif
            :: pins[c] != 0 -> c = AFTER(c)
            fi
#endif
        od;
#endif
        if
        :: found || evicted -> skip
        :: else ->
            /* evict() */
            evicted = 1;
#ifndef MUTANT_EVICT_ONE_LOOK
            r = 0;
            do :: r < READERS -> era[r] = epoch[r]; r++ :: else -> break od;
            i = 0;
            do :: i < CHUNKS -> atomic { look[i] = pins[i]; i++ } :: else -> break od;
#endif
            atomic { i = 0; r = 0; do :: r < READERS -> held[r] = 0; r++ :: else -> break od }
            do
            :: i < CHUNKS ->
                d_step {
                    r = 0;
                    do
                    :: r < READERS ->
#ifdef MUTANT_EVICT_ONE_LOOK
                        held[r] = held[r] + ((pins[i] >> r) & 1);
#else
                        held[r] = held[r] + (((pins[i] & look[i]) >> r) & 1);
#endif
                        r++
                    :: else -> break
                    od;
                    i++
                }
            :: else -> break
            od;
            r = 0;
            do
            :: r == READERS -> break
#ifdef MUTANT_EVICT_ONE_LOOK
            :: r < READERS && held[r] > PINS ->
#else
            :: r < READERS && held[r] > PINS && epoch[r] != era[r] -> r++
            :: r < READERS && held[r] > PINS && epoch[r] == era[r] ->
#endif
                epoch[r]++;
                i = 0;
                do :: i < CHUNKS -> atomic { pins[i] = pins[i] & ~BIT(r); i++ } :: else -> break od;
                r++
            :: r < READERS && held[r] <= PINS -> r++
            od;
            patience = CHUNKS;
            goto again
        fi;
        if
        :: found ->
            /* Nobody within their rights relies on what is overwritten. */
            assert(believes[c] == 0);
#ifdef DROP_NEW
            assert(data[c] == 0 || data[c] <= cursor[0]);
#endif
            data[c] = 0;
            d_step { data[c] = head + 1; rows_before[c] = published; }
            d_step { writing[c] = 0; pins[c] = 0; }
            d_step { slot_generation[head % CHUNKS] = generation[c]; slot_chunk[head % CHUNKS] = c; }
            d_step {
                head++;
                published++;
                next = AFTER(c);
#ifdef DROP_NEW
                newest_in[c] = head;
#endif
            }
        :: else ->
#ifdef DROP_NEW
            dropped++
#else
            d_step { slot_generation[head % CHUNKS] = 0; slot_chunk[head % CHUNKS] = head + 1; }
            d_step { head++; dropped++; }
#endif
        fi
    od;
    atomic { finished = 1; running--; }
}

/* One access, before which the reader may die. */
#define STEP(access) atomic { if :: kills > 0 -> kills--; goto dead :: true fi; access }

proctype reader(byte r; bit hostile) {
    byte next, c, g, e, d, b, i, n;
    byte chunk_of[MOST], generation_of[MOST], epoch_of[MOST], sequence_of[MOST];
    bit good;
#ifdef ELSEWHERE
    byte era;
#endif

start:
#ifdef MUTANT_SWEEP_WITHOUT_LOCK
    if
    :: kills == KILLS -> skip
    :: else -> skip
    fi;
#else
    atomic { !locked[r] -> locked[r] = 1 }
#endif
    /* take_over() */
    STEP(epoch[r]++);
#ifndef MUTANT_NO_SWEEP
    i = 0;
    do
    :: i < CHUNKS -> STEP(pins[i] = pins[i] & ~BIT(r)); i++
    :: else -> break
    od;
#endif
#ifdef MUTANT_SWEEP_WITHOUT_LOCK
    atomic { !locked[r] -> locked[r] = 1 }
#endif
    STEP(next = cursor[r] + 1);
#ifdef ELSEWHERE
    if :: hostile -> STEP(elsewhere = 1); STEP(era = epoch[r]) :: else -> skip fi;
#endif

    do
    :: n < PINS + hostile && next <= head ->
        /* try_pin() */
        STEP(g = slot_generation[(next - 1) % CHUNKS]; c = slot_chunk[(next - 1) % CHUNKS]);
        if
        :: g == 0 && c == next -> next++; goto passed
        :: g == 0 && c != next -> goto lap
        :: else -> skip
        fi;
        STEP(
            if
#ifdef MUTANT_PIN_BLIND
            :: true ->
#else
            :: generation[c] == g && !writing[c] && !(pins[c] & BIT(r)) ->
#endif
                good = 1;
                g = generation[c];
                pins[c] = pins[c] | BIT(r);
                if :: !hostile -> believes[c] = believes[c] | BIT(r) :: else -> skip fi
            :: else -> good = 0
            fi
        );
        if :: !good -> goto lap :: else -> skip fi;
        STEP(e = epoch[r]);
        STEP(d = data[c]; b = rows_before[c]; assert(hostile || d != 0));
        d_step { chunk_of[n] = c; generation_of[n] = g; epoch_of[n] = e; sequence_of[n] = next; n++; i = n - 1; }
#ifndef MUTANT_NO_SEQUENCE_CHECK
        if
        :: d != next -> b = 255; goto unpin
        :: else -> skip
        fi;
#endif
        if
        :: b + 1 <= position[r] -> b = 254; next++; goto unpin
        :: else -> skip
        fi;
        /* consumed(); the order holds, nothing comes twice, and what is handed out is what was asked for. */
        STEP(
            assert(hostile || (d == next && next > newest[r]));
            newest[r] = next;
            used[r]++;
            lapped[r] = lapped[r] + b - position[r];
            position[r] = b + 1
        );
        next++;
passed:
        STEP(cursor[r] = next - 1);
        if
        :: 0 ->
lap:        STEP(next = (head > DEPTH / 2 && head - DEPTH / 2 > next + 1 -> head - DEPTH / 2 : next + 1));
            STEP(cursor[r] = next - 1)
        :: else -> skip
        fi
    :: n > 0 ->
        /* A view is let go, the first or the last one. */
        b = 0;
        if :: i = 0 :: n > 1 -> i = n - 1 fi;
unpin:
        /* The bytes hold as long as the pin. */
        STEP(d = data[chunk_of[i]]; assert(hostile || b == 255 || d == sequence_of[i]));
        STEP(
            c = chunk_of[i];
            if
#ifdef MUTANT_BLIND_UNPIN
            :: true ->
#else
            :: generation[c] == generation_of[i] && (pins[c] & BIT(r)) ->
#endif
                good = 1;
                pins[c] = pins[c] & ~BIT(r)
            :: else -> good = 0; assert(hostile)
            fi;
            believes[c] = believes[c] & ~BIT(r)
        );
        /* release() says that the bytes were good: then they were. */
        if
        :: good ->
            STEP(
                good = (epoch[r] == epoch_of[i]);
                assert(hostile || good);
                assert(!good || b == 255 || d == sequence_of[i])
            )
        :: else -> skip
        fi;
        d_step {
            n--;
            if
            :: i < n -> chunk_of[i] = chunk_of[n]; generation_of[i] = generation_of[n]; epoch_of[i] = epoch_of[n];
                        sequence_of[i] = sequence_of[n]
            :: else -> skip
            fi;
            chunk_of[n] = 0; generation_of[n] = 0; epoch_of[n] = 0; sequence_of[n] = 0;
            c = 0; g = 0; e = 0; d = 0; i = 0; good = 0
        }
        if
        :: b == 255 -> b = 0; goto lap
        :: b == 254 -> b = 0; goto passed
        :: else -> b = 0
        fi
    :: finished && next > head && n == 0 -> break
    od;
#ifdef ELSEWHERE
    /* unpin() in the other shard */
    if
    :: hostile ->
        STEP(good = (epoch[r] == era));
#ifdef MUTANT_UNPIN_OF_OLD_EPOCH_LEAKS
        STEP(if :: good -> elsewhere = 0 :: else -> skip fi)
#else
        STEP(elsewhere = 0)
#endif
    :: else -> skip
    fi;
#endif
    /* settle() */
    STEP(lapped[r] = lapped[r] + published - position[r]; position[r] = published);
    STEP(cursor[r] = head);
    d_step { locked[r] = 0; running--; }
    goto gone;
dead:
    /* The kernel frees the lock; nothing else happens. */
    skip;
    d_step {
        i = 0;
        do :: i < CHUNKS -> believes[i] = believes[i] & ~BIT(r); i++ :: else -> break od;
        i = 0;
        do
        :: i < MOST -> chunk_of[i] = 0; generation_of[i] = 0; epoch_of[i] = 0; sequence_of[i] = 0; i++
        :: else -> break
        od;
        next = 0; c = 0; g = 0; e = 0; d = 0; b = 0; i = 0; n = 0; good = 0;
        locked[r] = 0
    }
    goto start;
gone:
    skip
}

init {
    byte k;
    atomic {
        running = READERS + INSTANCES;
        run writer();
        k = 0;
        do :: k < INSTANCES -> run reader(0, 0); k++ :: else -> break od;
        k = 1;
        do :: k < READERS -> run reader(k, HOSTILE && k == READERS - 1); k++ :: else -> break od;
        k = 0
    }
    running == 0;
    d_step {
        /* No chunk leaks. */
        do :: k < CHUNKS -> assert(pins[k] == 0 && !writing[k] && believes[k] == 0); k++ :: else -> break od;
        k = 0;
        /* Every packet is consumed once or counted as lost. */
        do
        :: k < READERS ->
            assert(position[k] == published && used[k] + lapped[k] == published);
#ifdef DROP_NEW
            assert(lapped[k] == 0);
#endif
            k++
        :: else -> break
        od;
        assert(published + dropped == PACKETS);
#ifdef ELSEWHERE
        assert(elsewhere == 0)
#endif
    }
}
