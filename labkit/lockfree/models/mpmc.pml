/* The queue of labkit/lockfree/mpmc.py: two senders, two receivers, any of whom may be killed after any instruction;
   and a newcomer, who in the end drains the queue.

   Each access to shared memory is a step of its own (atomic), together with what the process then decides by itself;
   before each step it may be killed. Who sleeps has nothing, so its death is that before it sleeps.
   Functions and names are those of the code. Positions are plain numbers here, so that lap and index are p / CAPACITY
   and p % CAPACITY; what a slot holds is the position that was claimed for it, plus one.

   Checked
       invariant C   every claim is of the first unclaimed position
       invariant T   every take, and every passing over poison, is of the first untaken position
       edges A, B    whoever releases has read what the sender of that position has filled in
       what was published is received exactly once; received is what was released, as a receiver that is killed before
                     that has received nothing, and another is given the message
       what was not published, or given up, is received by nobody
       nobody waits for ever: who has to wait does so until something changes that it has looked at, or the owner of a
                     slot is proved dead, and if that never comes SPIN reports an invalid end state
       at the end    no slot is lost: all are FREE, of the right lap

   Broken on purpose
       VYUKOV        without owners: who is killed between claim and publish is waited for for ever
       PUBLISH_FIRST the slot is FULL before it is filled                 (edge A)
       RELEASE_FIRST the slot is FREE before it was read                  (edge B)
       HINT_FIRST    the hint is stored before the claim: a sender killed in between leaves one that is not true
       BLIND_BURY    whether an owner is dead is asked before its word is loaded
       NO_TIMES      `times` is not counted, and who has taken over a number and a slot has the word of the dead one
       NO_SWEEP      a newcomer uses a number without clearing what the dead one had
       BACK_FIRST    BACK is set before a slot becomes nobody's, instead of afterwards
       CLOSED_EARLY  a receiver that finds nothing, and then finds no sender, does not look again
   Variants
       REUSE         a newcomer takes the number of a dead one while the others go on; else it comes when all is over
       CAPACITY, KILLS, and FIRST and SECOND: how many messages the one sender sends, and the other
       LOANS         a sender may give up what it has claimed, a receiver may hand back what it has taken; the hint is
                     stored after the claim, else after publishing
       RUN           two slots that follow each other are claimed, and then filled and published
*/
#ifndef CAPACITY
#define CAPACITY 2
#endif
#ifndef FIRST
#define FIRST 2
#endif
#ifndef SECOND
#define SECOND 1
#endif
#ifndef KILLS
#define KILLS 1
#endif

#define PEOPLE  4                       /* senders are the participants 1 and 2, receivers 3 and 4 */
#define NEW     5                       /* the number of a newcomer when nobody has died */
#define TOTAL   (FIRST + SECOND)

/* word of a slot: lap | owner | times | state */
#define FREE    0
#define FILLING 1
#define FULL    2
#define TAKING  3
#define POISON  4
#define NOBODY  0
#define WORD(lap, owner, times, state)  ((lap) << 8 | (owner) << 5 | (times) << 3 | (state))
#define STATE(w)  ((w) & 7)
#define TIMES(w)  ((w) >> 3 & 3)
#define OWNER(w)  ((w) >> 5 & 7)
#define LAP(p)    ((p) / CAPACITY)
#define INDEX(p)  ((p) % CAPACITY)
#define AHEAD(w, p) (((w) >> 8) - LAP(p))
#define OWNED(w)  (OWNER(w) != NOBODY && (STATE(w) == FILLING || STATE(w) == TAKING))
#ifdef VYUKOV
#define ME NOBODY
#else
#define ME me
#endif

short slot[CAPACITY];                   /* the words; zeroed memory is an empty queue */
byte held[CAPACITY];                    /* what is in the slots */
byte WRITE, READ;                       /* hints */
bit BACK;                               /* some slot may be TAKING by nobody */

bit dead[PEOPLE + 2];                   /* nobody has the lock of this number: is_dead() */
bit sends[PEOPLE + 2], receives[PEOPLE + 2];    /* PARTS of the living; and of the dead, until they are swept */
byte kills;
byte heir;                              /* number of the newcomer */
byte over;                              /* senders and receivers that have ended, or died */

byte claimed, passed;                   /* what the model knows and no process looks at */
bit published[TOTAL], received[TOTAL];

#ifdef VYUKOV
#define DEAD(n)          false
#else
#define DEAD(n)          dead[n]
#endif
#define SOMEBODY_IS_DEAD (DEAD(1) || DEAD(2) || DEAD(3) || DEAD(4))
#define SENDS_ANYBODY    ((sends[1] && !DEAD(1)) || (sends[2] && !DEAD(2)))
#define RECEIVES_ANYBODY ((receives[1] && !DEAD(1)) || (receives[2] && !DEAD(2)) || \
                          (receives[3] && !DEAD(3)) || (receives[4] && !DEAD(4)) || receives[NEW])
#define HAS_DIED(w)      (OWNED(w) && dead[OWNER(w)])
#define IS_LEFT(w)       (STATE(w) == TAKING && OWNER(w) == NOBODY)
#if CAPACITY == 1
#define ANY_HAS_DIED     HAS_DIED(slot[0])
#define ANY_IS_LEFT      IS_LEFT(slot[0])
#elif CAPACITY == 2
#define ANY_HAS_DIED     (HAS_DIED(slot[0]) || HAS_DIED(slot[1]))
#define ANY_IS_LEFT      (IS_LEFT(slot[0]) || IS_LEFT(slot[1]))
#else
#define ANY_HAS_DIED     (HAS_DIED(slot[0]) || HAS_DIED(slot[1]) || HAS_DIED(slot[2]))
#define ANY_IS_LEFT      (IS_LEFT(slot[0]) || IS_LEFT(slot[1]) || IS_LEFT(slot[2]))
#endif


#define EMPTY_AT(w, p) (AHEAD(w, p) < 0 || (AHEAD(w, p) == 0 && (STATE(w) == FREE || STATE(w) == FILLING)))
#define NONE 255
#ifdef NO_TIMES
#define MORE 0
#else
#define MORE 1
#endif

/* kill -9, here or not. Whoever is dead has no lock any more. */
#define MAY_DIE \
    if \
    :: skip \
    :: kills < KILLS && me != heir -> kills++; dead[me] = 1; goto dies \
    fi

inline help_on(hint) {                                          /* help_on: another may come in between */
    atomic {
        MAY_DIE;
        if
        :: hint < position + 1 -> late = 1
        :: else
        fi
    };
    if
    :: late -> atomic { MAY_DIE; hint = position + 1; late = 0 }
    :: else
    fi
}

/* --- the dead ------------------------------------------------------------------------------------------------- */

inline take_from(index) {                                       /* _take_from: exchange exactly the word that was loaded */
    if
    :: slot[index] == word && STATE(word) == FILLING -> slot[index] = WORD(word >> 8, NOBODY, 0, POISON)
    :: slot[index] == word && STATE(word) == TAKING -> slot[index] = WORD(word >> 8, NOBODY, TIMES(word), TAKING)
    :: else
    fi
}

#ifdef BLIND_BURY
#define LOAD_AND_ASK \
    atomic { MAY_DIE; it = OWNER(slot[k]); word = OWNED(slot[k]) && dead[it] }; \
    atomic { MAY_DIE; word = (word && OWNED(slot[k]) && OWNER(slot[k]) == it -> slot[k] : 0) }; \
    it = 0
#else
#define LOAD_AND_ASK \
    atomic { MAY_DIE; word = (OWNED(slot[k]) -> slot[k] : 0) }; \
    atomic { MAY_DIE; word = (word && dead[OWNER(word)] -> word : 0) }
#endif

#define WORTH_IT (SOMEBODY_IS_DEAD && (ANY_HAS_DIED || ANY_IS_LEFT))    /* else a look at all, with no effect */

#ifdef BACK_FIRST
#define BACK_BEFORE atomic { MAY_DIE; BACK = 1 }
#define BACK_AFTER  skip
#else
#define BACK_BEFORE skip
#define BACK_AFTER  atomic { MAY_DIE; BACK = 1 }
#endif

inline bury() {                                                 /* bury, _bury_all */
    if
    :: WORTH_IT ->
        BACK_BEFORE;
        do
        :: k < CAPACITY ->
            LOAD_AND_ASK;                                       /* asked after loading the word, never before */
            atomic {
                if
                :: word -> MAY_DIE; take_from(k)
                :: else
                fi;
                word = 0; k++
            }
        :: else -> break
        od;
        k = 0;
        BACK_AFTER
    :: else
    fi
}

inline sweep() {                                                /* before a dead one's number is ours */
    sends[me] = 0;
    receives[me] = 0;
#ifndef NO_SWEEP
    BACK_BEFORE;
    do
    :: k < CAPACITY ->
        atomic { word = (OWNED(slot[k]) && OWNER(slot[k]) == me -> slot[k] : 0) };
        atomic {
            if
            :: word -> take_from(k)
            :: else
            fi;
            word = 0; k++
        }
    :: else -> break
    od;
    k = 0;
    BACK_AFTER
#endif
}

/* --- senders -------------------------------------------------------------------------------------------------- */

inline claim() {                                                /* claim, _walk_to_claim */
    atomic { MAY_DIE; position = WRITE; is_full = 0 };          /* edge H */
    do
    ::
#ifdef HINT_FIRST
        atomic { MAY_DIE; WRITE = position + 1 };
#endif
        atomic {
            MAY_DIE;
            word = slot[INDEX(position)];                       /* compare_exchange: edge B */
            if
            :: word == WORD(LAP(position), NOBODY, 0, FREE) ->
                slot[INDEX(position)] = WORD(LAP(position), ME, 0, FILLING);
                assert(position == claimed);                    /* invariant C */
                claimed++;
                word = 0;
                break
            :: else ->
                assert(AHEAD(word, position) >= -1 && !(AHEAD(word, position) == -1 && STATE(word) == FREE));  /* CORRUPT */
                if
                :: AHEAD(word, position) < 0 -> is_full = 1; word = 0; break
                :: AHEAD(word, position) >= 0 && STATE(word) == FREE ->
                    position = position + (AHEAD(word, position) - 1) * CAPACITY + 1    /* _jump */
                :: AHEAD(word, position) >= 0 && STATE(word) != FREE ->
                    position = position + AHEAD(word, position) * CAPACITY + 1
                fi;
                word = 0
            fi
        }
    od
}

inline claim_more() {                                           /* claim_run: the next slot, too, if it is free */
    atomic {
        MAY_DIE;
        if
        :: sent + 1 < (me == 1 -> FIRST : SECOND) && INDEX(position) + 1 < CAPACITY &&
           slot[INDEX(position) + 1] == WORD(LAP(position), NOBODY, 0, FREE) ->
            slot[INDEX(position) + 1] = WORD(LAP(position), ME, 0, FILLING);
            assert(position + 1 == claimed);                    /* invariant C */
            claimed++; more = 1
        :: else
        fi
    }
}

#define PUBLISH slot[INDEX(position)] = WORD(LAP(position), NOBODY, 0, FULL); published[position] = 1

proctype Sender(byte me) {
    byte sent, position, k, it;
    short word;
    bit is_full, late, more;
    do
    :: sent < (me == 1 -> FIRST : SECOND) ->
        claim();
        if
        :: is_full ->
            bury();
            atomic {                                            /* sleep */
                MAY_DIE;
                if
                :: AHEAD(slot[INDEX(position)], position) != -1
                :: SOMEBODY_IS_DEAD && ANY_HAS_DIED
                :: !RECEIVES_ANYBODY -> break                   /* Closed */
                fi
            }
        :: else ->
#ifdef LOANS
            help_on(WRITE);
#endif
#ifdef RUN
            claim_more();
fills:
#endif
#ifdef PUBLISH_FIRST
            atomic { MAY_DIE; PUBLISH };
            atomic { MAY_DIE; held[INDEX(position)] = position + 1 };
#else
            atomic { MAY_DIE; held[INDEX(position)] = position + 1 };
            atomic {
                MAY_DIE;
                if
                :: PUBLISH                                      /* publish: edge A */
#ifdef LOANS
                :: slot[INDEX(position)] = WORD(LAP(position), NOBODY, 0, POISON)       /* give_up */
#endif
                fi
            };
#endif
            sent++;
#ifdef RUN
            if
            :: more -> atomic { position++; more = 0 }; goto fills
            :: else
            fi;
#endif
#ifndef LOANS
            help_on(WRITE)
#endif
        fi
    :: else -> break
    od;
    sends[me] = 0;                                              /* leave */
dies:
    atomic { sent = 0; position = 0; word = 0; is_full = 0; late = 0; more = 0; k = 0; it = 0; over++ }
}

/* --- receivers ------------------------------------------------------------------------------------------------ */

inline take() {
    atomic { MAY_DIE; position = READ; is_empty = 0 };          /* edge H */
    do
    ::  atomic {                                                /* compare_exchange without a look; if it fails, a look */
            slot[INDEX(position)] == WORD(LAP(position), NOBODY, 0, FULL) ->
            MAY_DIE;
            slot[INDEX(position)] = WORD(LAP(position), ME, 0, TAKING);
            assert(position == passed);                         /* invariant T */
            passed++;
            break
        }
    ::  atomic {
            MAY_DIE;
            word = slot[INDEX(position)];                       /* edge A */
            assert(AHEAD(word, position) >= -1 && !(AHEAD(word, position) < 0 && STATE(word) == FREE));     /* CORRUPT */
            if
            :: AHEAD(word, position) == 0 && (STATE(word) == FULL || STATE(word) == POISON)
            :: EMPTY_AT(word, position) -> is_empty = 1; word = 0; break
            :: AHEAD(word, position) > 0 ->
                position = position + (AHEAD(word, position) - 1) * CAPACITY + 1; word = 0
            :: AHEAD(word, position) == 0 && STATE(word) == TAKING -> position = position + 1; word = 0
            fi
        };
        if
        :: word ->
            atomic {                                            /* compare_exchange */
                MAY_DIE;
                if
                :: slot[INDEX(position)] == word && STATE(word) == FULL ->
                    slot[INDEX(position)] = WORD(LAP(position), ME, 0, TAKING);
                    assert(position == passed);                 /* invariant T */
                    passed++;
                    word = 0;
                    break
                :: slot[INDEX(position)] == word && STATE(word) == POISON ->
                    slot[INDEX(position)] = WORD(LAP(position) + 1, NOBODY, 0, FREE);
                    assert(position == passed);                 /* invariant T */
                    passed++
                :: else
                fi;
                word = 0
            }
        :: else
        fi
    od;
    if
    :: !is_empty -> help_on(READ)
    :: else
    fi
}

inline retake() {                                               /* the oldest that is nobody's; then it is ours */
    if
    :: BACK ->
        atomic { MAY_DIE; BACK = 0 };                           /* exchange */
        it = NONE;
        do
        :: k < CAPACITY ->
            atomic {
                MAY_DIE;
                word = slot[k];                                 /* edge A */
                if
                :: IS_LEFT(word) && (it == NONE || (word >> 8) * CAPACITY + k < it) -> it = (word >> 8) * CAPACITY + k
                :: else
                fi;
                k++; word = 0
            }
        :: else -> break
        od;
        k = 0;
        if
        :: it != NONE -> atomic { MAY_DIE; BACK = 1 }
        :: else
        fi;
        atomic {
            if
            :: it != NONE ->
                MAY_DIE;
                word = slot[INDEX(it)];
                if
                :: IS_LEFT(word) && AHEAD(word, it) == 0 ->
                    slot[INDEX(it)] = WORD(LAP(it), ME, (TIMES(word) + MORE) & 3, TAKING);
                    position = it; is_empty = 0
                :: else
                fi
            :: else
            fi;
            it = 0; word = 0
        }
    :: else
    fi
}

#define RELEASE slot[INDEX(position)] = WORD(LAP(position) + 1, NOBODY, 0, FREE)

/* take, read, release; and what a receiver does that finds nothing. */
inline receive_all() {
    do
    ::  take();
        if
        :: is_empty && gone ->
            retake();
            if
            :: is_empty -> break                                /* Closed */
            :: else
            fi
        :: is_empty && !gone ->
            gone = (me == heir -> over == PEOPLE : !SENDS_ANYBODY);     /* anybody: then bury, then take once more */
#ifdef CLOSED_EARLY
            if
            :: gone -> break
            :: else
            fi;
#endif
            bury();
            retake();
            atomic {
                if
                :: is_empty && !gone ->                         /* sleep */
                    MAY_DIE;
                    if
                    :: !EMPTY_AT(slot[INDEX(position)], position)
                    :: WORTH_IT                                 /* within some looks, ten a second */
                    :: BACK
                    :: me == heir && over == PEOPLE
                    :: me != heir && !SENDS_ANYBODY
                    fi
                :: else
                fi
            }
        :: else
        fi;
        if
        :: !is_empty ->
#ifdef RELEASE_FIRST
            atomic { MAY_DIE; RELEASE };
            atomic { MAY_DIE; k = held[INDEX(position)] };
            atomic { assert(k == position + 1); received[position] = 1; k = 0 }
#else
            atomic { MAY_DIE; k = held[INDEX(position)] };
            atomic {
                MAY_DIE;
                if
                :: RELEASE;                                     /* release: edge B */
                    assert(k == position + 1 && published[position] && !received[position]);
                    received[position] = 1
#ifdef LOANS
                :: goto hands_back
#endif
                fi;
                k = 0
            };
#ifdef LOANS
            if
            :: false ->
hands_back:     k = 0;                                          /* hand_back */
                BACK_BEFORE;
                atomic { MAY_DIE; slot[INDEX(position)] = slot[INDEX(position)] & ~WORD(0, 7, 0, 0) };
                BACK_AFTER
            :: else
            fi
#endif
#endif
        :: else
        fi;
        position = 0
    od
}

proctype Receiver(byte me) {
    byte position, k, it;
    short word;
    bit is_empty, gone, late;
    receive_all();
    atomic {                                                    /* it has not closed too early */
        k = 0;
        do
        :: k < TOTAL -> assert(!published[k] || k < passed); k++
        :: else -> break
        od;
        k = 0
    };
    receives[me] = 0;                                           /* leave */
dies:
    atomic { position = 0; word = 0; is_empty = 0; gone = 0; late = 0; k = 0; it = 0; over++ }
}

/* Somebody new, who gets the number of one that has died; or one that nobody has had. It is not killed. */
proctype Newcomer() {
    byte me, position, k, it;
    short word;
    bit is_empty, gone, late;
    atomic {
        if
#ifdef REUSE
        :: dead[1] -> me = 1
        :: dead[2] -> me = 2
        :: dead[3] -> me = 3
        :: dead[4] -> me = 4
#endif
        :: over == PEOPLE -> me = NEW
        fi;
        dead[me] = 0;                                           /* Segment.enter: the lock is ours, and then */
        heir = me
    };
    sweep();
    receives[me] = 1;                                           /* join */
    receive_all();
dies:
    atomic {
        assert(claimed == passed);
        k = 0;
        do
        :: k < TOTAL -> assert(published[k] == received[k]); k++
        :: else -> break
        od;
        k = 0;
        do
        :: k < CAPACITY -> assert(slot[k] == WORD((claimed + CAPACITY - 1 - k) / CAPACITY, NOBODY, 0, FREE)); k++
        :: else -> break
        od
    }
}

init {
    atomic {
        sends[1] = 1; sends[2] = 1; receives[3] = 1; receives[4] = 1;
        run Sender(1); run Sender(2); run Receiver(3); run Receiver(4); run Newcomer()
    }
}
