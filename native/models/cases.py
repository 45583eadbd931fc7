"""What is modelled, within which bounds, and what each model must not survive."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mutant:
    """A change that the model must not survive.

    Args:
        change: macros of a spin model, arguments of a relacy one.
        fails: part of what is then reported.
    """

    change: str
    fails: str


@dataclass(frozen=True)
class Case:
    """One model within given bounds.

    Args:
        model: file.
        concern: what it is about.
        quick, full: bounds; macros of a spin model, searches of a relacy one. An empty `full` means the same.
    """

    model: str
    concern: str
    quick: str
    full: str = ""
    mutants: tuple[Mutant, ...] = field(default=())


CASES = (
    Case(
        "producer.pml",
        "a live producer, killed twice",
        "-DITEMS=3",
        "-DITEMS=4",
        (
            Mutant("-DMUTANT_FORGETS_INTENT", "seen==announced"),
            Mutant("-DMUTANT_BOOKS_TWICE", "seen==announced"),
            Mutant("-DMUTANT_OWED_FORGOTTEN", "seen==announced"),
            Mutant("-DMUTANT_CLAIMS_STAY_OPEN", "!(writing[c])"),
            Mutant("-DMUTANT_INTENT_AFTER_HEAD", "seen==announced"),
            Mutant("-DMUTANT_BOOKS_IN_TWO_STEPS", "published==committed"),
        ),
    ),
    Case(
        "producer.pml",
        "a producer that repeats, killed twice",
        "-DSOURCE=1 -DITEMS=3",
        "-DSOURCE=1 -DITEMS=5",
        (
            Mutant("-DMUTANT_FORGETS_INTENT", "item==(settled+1)"),
            Mutant("-DMUTANT_SOURCE_NOT_RAISED", "item==(settled+1)"),
        ),
    ),
    Case(
        "producer.pml",
        "producer and reader killed",
        "-DSOURCE=1 -DITEMS=3 -DKILLS=1 -DREADER_KILLS=1",
        "-DSOURCE=1 -DITEMS=4 -DKILLS=2 -DREADER_KILLS=1",
        (Mutant("-DMUTANT_BOOKED_COMES_AGAIN", "next>newest"),),
    ),
    Case(
        "producer.pml",
        "drop_new, both killed",
        "-DDROP_NEW -DSOURCE=1 -DCHUNKS=2 -DITEMS=3 -DKILLS=1 -DREADER_KILLS=1",
        "-DDROP_NEW -DITEMS=4 -DKILLS=1 -DREADER_KILLS=1",
        (
            Mutant("-DREADER_KILLS=0 -DMUTANT_FORGETS_UNREAD", "data[c]>cursor"),
            Mutant("-DKILLS=0 -DMUTANT_CURSOR_BEFORE_BOOKS", "lapped==0"),
            Mutant("-DMUTANT_ENDS_UNREAD", "lapped==0"),
        ),
    ),
    Case(
        "claims.pml",
        "claims of a live producer, killed twice",
        "-DITEMS=3",
        "-DITEMS=5",
        (
            Mutant("-DMUTANT_VERSION_AT_CLAIM", "seen==announced"),
            Mutant("-DMUTANT_SEQUENCE_AT_CLAIM", "head==committed"),
            Mutant("-DMUTANT_CLAIM_CLOSED_AFTER_INTENT", "seen==announced"),
            Mutant("-DMUTANT_CRASH_WITHOUT_INTENT", "seen==announced"),
            Mutant("-DMUTANT_OPEN_CLAIMS_FORGOTTEN", "seen==announced"),
            Mutant("-DMUTANT_OWED_BEFORE_CLAIMS", "seen==(published+dropped)"),
            Mutant("-DMUTANT_CLAIM_IGNORES_WRITING", "!(mine[c])"),
        ),
    ),
    Case(
        "claims.pml",
        "claims that are repeated, killed twice",
        "-DSOURCE=1 -DITEMS=4",
        "-DSOURCE=1 -DITEMS=5",
        (
            Mutant("-DMUTANT_ANY_MARK_REPEATS", "seen==source"),
            Mutant("-DMUTANT_OPEN_CLAIMS_FORGOTTEN", "claim_open[c]"),
        ),
    ),
    Case(
        "pins.pml",
        "one reader, killed",
        "-DREADERS=1 -DCHUNKS=3 -DPACKETS=5 -DKILLS=1",
        "-DREADERS=1 -DCHUNKS=3 -DPACKETS=6 -DKILLS=2",
        (
            Mutant("-DMUTANT_CLAIM_IGNORES_PINS", "hostile"),
            Mutant("-DMUTANT_CLAIM_NOT_ATOMIC", "hostile"),
            Mutant("-DMUTANT_PIN_BLIND", "believes[c]==0"),
            Mutant("-DMUTANT_NO_SEQUENCE_CHECK", "d==next"),
            Mutant("-DMUTANT_NO_SWEEP", "pins[k]==0"),
            Mutant("-DMUTANT_EVICT_ONE_LOOK", "hostile"),
        ),
    ),
    Case("pins.pml", "two readers, one killed", "-DPACKETS=4 -DKILLS=1", "-DPACKETS=5 -DKILLS=1"),
    Case(
        "pins.pml",
        "eviction",
        "-DHOSTILE=1 -DELSEWHERE -DPACKETS=4",
        "-DHOSTILE=1 -DELSEWHERE -DPACKETS=5",
        (
            Mutant("-DPACKETS=6 -DMUTANT_BLIND_UNPIN", "d==sequence_of[i]"),
            Mutant("-DPACKETS=6 -DMUTANT_UNPIN_OF_OLD_EPOCH_LEAKS", "elsewhere==0"),
        ),
    ),
    Case(
        "pins.pml",
        "two sweepers and a reader that comes back",
        "-DREADERS=1 -DINSTANCES=2 -DCHUNKS=3 -DPACKETS=4 -DKILLS=2",
        "-DREADERS=1 -DINSTANCES=3 -DCHUNKS=3 -DPACKETS=5 -DKILLS=2",
        (Mutant("-DMUTANT_SWEEP_WITHOUT_LOCK", "hostile"),),
    ),
    Case(
        "pins.pml",
        "drop_new, reader killed",
        "-DDROP_NEW -DREADERS=1 -DPINS=2 -DCHUNKS=3 -DPACKETS=5 -DKILLS=1",
        "-DDROP_NEW -DREADERS=1 -DPINS=2 -DCHUNKS=4 -DPACKETS=7 -DKILLS=1",
        (Mutant("-DMUTANT_DROP_NEW_ANY_CHUNK", "pins[c]==0"),),
    ),
    Case(
        "pins.cpp",
        "orders of claim, publish, pin, unpin, sweep",
        "random:50000",
        "random:3000000",
        (
            Mutant("claim_is_a_store", "DATA RACE"),
            Mutant("CLAIM=relaxed", "DATA RACE"),
            Mutant("UNPIN=relaxed", "DATA RACE"),
            Mutant("SWEEP=relaxed", "DATA RACE"),
            Mutant("PUBLISH=relaxed SLOT_STORE=relaxed HEAD_STORE=relaxed", "DATA RACE"),
            Mutant("HEAD_LOAD=relaxed SLOT_LOAD=relaxed PIN=relaxed", "DATA RACE"),
        ),
    ),
    Case(
        "evict.cpp",
        "orders of eviction",
        "random:30000 bound:2",
        "random:2000000 bound:4",
        (
            Mutant("blind_unpin", "USER ASSERT"),
            Mutant("holds_is_a_load", "USER ASSERT"),
        ),
    ),
    Case(
        "doorbell.cpp",
        "orders of sleeping, waking and the end",
        "random:30000 bound:2",
        "random:2000000 bound:3",
        (
            Mutant(
                "HEAD_STORE=release WAITERS_LOAD=acquire WAITERS_SET=acq_rel "
                "BELL_LOAD=acquire READY_LOAD=acquire",
                "DEADLOCK",
            ),
            Mutant("bell_does_not_count", "DEADLOCK"),
            Mutant("bit_before_bell", "DEADLOCK"),
            Mutant("closes_in_silence", "DEADLOCK"),
            Mutant("CLOSE_STORE=relaxed", "USER ASSERT"),
        ),
    ),
    Case(
        "books.cpp",
        "orders of numbers that change together",
        "random:30000 bound:1",
        "random:2000000 bound:3",
        (
            Mutant("WORD_STORE=relaxed", "USER ASSERT"),
            Mutant("WORD_LOAD=relaxed", "USER ASSERT"),
            Mutant("VERSION_STORE=relaxed", "USER ASSERT"),
        ),
    ),
    Case(
        "gate.cpp",
        "orders of a shard's turns and of closing",
        "random:30000 bound:2",
        "random:2000000 bound:3",
        (
            Mutant("GATE_LEAVE=relaxed", "DATA RACE"),
            Mutant("GATE_ENTER=relaxed GATE_QUEUE=relaxed", "DATA RACE"),
            Mutant("looks_once", "USER ASSERT"),
            Mutant("close_waits_for_nobody", "DATA RACE"),
            Mutant("close_leaves_claims_open", "USER ASSERT"),
        ),
    ),
    Case(
        "seat.cpp",
        "orders of closing a reader that holds pins",
        "random:30000 bound:2",
        "random:2000000 bound:4",
        (
            Mutant("leaves_at_once", "USER ASSERT"),
            Mutant(
                "SEAT_CLOSE=relaxed HELD_LOAD=relaxed HELD_LESS=relaxed SEAT_CLOSED=relaxed", "USER ASSERT"
            ),
        ),
    ),
)
