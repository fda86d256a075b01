/* The ring of labkit/lockfree/spsc.py: messages in one frame or in pieces, one sender, one receiver. Either may be
   killed after any instruction, and another one then takes its role; a sender may also give up waiting.

   Checked: a message of which all pieces were published is received whole, in order, and once. What was not complete
   never comes. A receiver that is killed before its release leaves the message to the next, unless it is larger than
   the ring. Nobody waits for ever. No position is ever found CORRUPT.

   Every frame is a head and one word; one that is a whole message takes all of the ring. A message is WHOLE, or has 2
   pieces (it fits in the ring), or 3 (it does not).

   Broken on purpose
       EDGE_A      the store of WRITE is no release: it is seen before the word of the message
       EDGE_B      the store of READ is no release: it is seen before the word of the message was read
       STALE       READ_SEEN is trusted although it is only a hint that may be too old: full for ever
       NO_ABANDON  who takes over, or gives up, does not say that the rest of a message will not come
       CUT_EARLY   the receiver does not look once more, after BEGUN has gone on, whether the rest has come
       RELEASED    pieces of a message that fits are released as they come
*/
#define MESSAGES 3
#ifndef KILLS
#define KILLS 1             /* of each side, at most */
#endif
#ifndef SHIFT
#define SHIFT 0             /* which of the three kinds is the first */
#endif
#define CAPACITY 4          /* words */
#define FRAME    2          /* of a piece */
#define SIZE(m)  (PIECES(m) == 1 -> CAPACITY : FRAME)

#define SLOT(p)   ((p) % CAPACITY)
#define PIECES(m) (1 + (2 * (m) + SHIFT) % 3)
#define WHOLE 1
#define FIRST 2
#define MORE  3
#define WORD(m, k) (1 + 4 * (m) + (k))

byte WRITE, BEGUN;          /* the sender's line */
byte READ;                  /* the receiver's line */
byte DATA[CAPACITY];

/* What the model knows, and no process looks at. */
bit published[MESSAGES], received[MESSAGES], lost[MESSAGES];
byte next;                  /* the message that is sent next */
bit sender_done;            /* there will be no sender any more: known by its role, segment.role */
bit kill_sender, kill_receiver;

active proctype Killer() {
    byte senders, receivers;
    do
    :: senders < KILLS -> senders++; kill_sender = 1
    :: receivers < KILLS -> receivers++; kill_receiver = 1
    :: break
    od;
    senders = 0; receivers = 0
}

active proctype Sender() {
    byte write, read, seen, k;
again: {
#ifndef NO_ABANDON
    BEGUN = WRITE;                                              /* abandon: edge C */
#endif
    do
    :: next < MESSAGES ->
        write = WRITE;                                          /* reserve */
        if
        :: write - seen > CAPACITY - SIZE(next) ->
            read = READ;                                        /* edge B */
            assert(read <= write && write - read <= CAPACITY);
#ifndef STALE
            seen = read;
#endif
            if
            :: write - seen > CAPACITY - SIZE(next) ->               /* FULL: wait, or give up */
                if
                :: READ != read -> goto again_same
                :: k > 0 && kill_sender == 0 -> next++; k = 0; goto again
                fi
            :: else
            fi
        :: else
        fi;
        if
        :: k == 0 && PIECES(next) > 1 -> BEGUN = write          /* begin: edge C */
        :: else
        fi;
        if
        :: PIECES(next) == 1 -> DATA[SLOT(write)] = WHOLE
        :: k == 0 && PIECES(next) > 1 -> DATA[SLOT(write)] = FIRST + 4 * PIECES(next)
        :: k > 0 -> DATA[SLOT(write)] = MORE
        fi;
#ifndef EDGE_A
        DATA[SLOT(write + 1)] = WORD(next, k);
#endif
        atomic {                                                /* publish: edge A */
            WRITE = write + SIZE(next);
            if
            :: k + 1 == PIECES(next) -> published[next] = 1
            :: else
            fi
        };
#ifdef EDGE_A
        DATA[SLOT(write + 1)] = WORD(next, k);
#endif
        if
        :: k + 1 == PIECES(next) -> atomic { next++; k = 0 }
        :: else -> k++
        fi;
again_same: skip
    :: else -> break
    od
    } unless { kill_sender };
    if
    :: kill_sender ->                                           /* another one takes the role, and sends others */
        atomic {
            kill_sender = 0; write = 0; read = 0; seen = 0;
            if
            :: next < MESSAGES && (k > 0 || published[next]) -> next++
            :: else
            fi;
            k = 0
        };
        goto again
    :: else -> atomic { sender_done = 1; write = 0; read = 0; seen = 0; k = 0 }
    fi
}

#define MESSAGE ((DATA[SLOT(position + 1)] - 1) / 4)
#define PIECE   ((DATA[SLOT(position + 1)] - 1) % 4)

inline deliver(m) {                                             /* it is received for good */
    assert(published[m] && !received[m]);
    assert(m < 1 || !published[0] || received[0] || lost[0]);
    assert(m < 2 || !published[1] || received[1] || lost[1]);
    received[m] = 1
}

active proctype Receiver() {
    byte position, seen, start, got, total, head, message;
    bit open, passed;
again: {
    do
    :: if
       :: !open -> position = READ
       :: else
       fi;
        if
        :: seen <= position -> seen = WRITE                     /* readable: edge A */
        :: else
        fi;
        assert(seen >= position && seen - READ <= CAPACITY);
        if
        :: seen == position && open && BEGUN > start ->         /* is_cut: edge C */
#ifndef CUT_EARLY
            seen = WRITE;
#endif
            if
            :: seen == position -> open = 0; READ = position
            :: else
            fi
        :: seen == position && !(open && BEGUN > start) ->      /* EMPTY */
            if
            :: WRITE != position
            :: open && BEGUN > start
            :: sender_done && WRITE == position -> break        /* Closed */
            fi
        :: seen > position ->
            head = DATA[SLOT(position)];
            if
            :: head % 4 != MORE && open -> open = 0; READ = position    /* what was begun is cut */
            :: head % 4 == MORE && !open ->                     /* the rest of one that another receiver had */
                READ = position + FRAME
            :: head == WHOLE && !open ->
#ifdef EDGE_B
                READ = position + CAPACITY;
#endif
                message = MESSAGE;
                assert(DATA[SLOT(position + 1)] == WORD(message, 0) && PIECES(message) == 1);
                atomic { READ = position + CAPACITY; deliver(message) } /* release: edge B */
            :: head % 4 == FIRST && !open || head % 4 == MORE && open ->
                if
                :: head % 4 == FIRST ->
                    atomic { open = 1; start = position; got = 0; total = head / 4; message = MESSAGE }
                :: else
                fi;
                assert(DATA[SLOT(position + 1)] == WORD(message, got) && total == PIECES(message));
                got++;
                position = position + FRAME;
                if
                :: got == total -> atomic { READ = position; deliver(message); open = 0 }
#ifdef RELEASED
                :: got < total -> READ = position
#else
                :: got < total && total * FRAME > CAPACITY -> READ = position
                :: got < total && total * FRAME <= CAPACITY
#endif
                fi
            fi
        fi
    od
    } unless { kill_receiver };
    atomic {
        if
        :: kill_receiver && open && total * FRAME > CAPACITY && READ > start -> lost[message] = 1   /* it was larger than the ring */
        :: else
        fi;
        position = 0; seen = 0; start = 0; got = 0; total = 0; head = 0; message = 0; open = 0
    };
    if
    :: kill_receiver -> kill_receiver = 0; goto again
    :: else ->
        assert(!published[0] || received[0] || lost[0]);
        assert(!published[1] || received[1] || lost[1]);
        assert(!published[2] || received[2] || lost[2])
    fi
}
