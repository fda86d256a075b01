/* Runs of blocks: labkit/lockfree/blocks.py, step for step, under a queue of slots that keeps its own promises.

   Two senders, RECEIVERS receivers, one newcomer. KILLS of them die, each before any step. The slots are those of mpmc.pml,
   reduced to what that model has proved of them: each change of a slot is one step here. A block's content is the number
   of the message that was written into it last.

   What must hold: a receiver reads what the sender wrote, from before it releases the slot until it frees the run; in
   the end every message that was published has been received, and every block may be claimed.

   What is broken on purpose
       OWNER_FIRST     whether the owner is dead is asked before whether the position has left
       NO_SERIAL       claims have no number: with a newcomer a word comes back
       NO_SWEEP        a newcomer does not clear what its number had
       RELEASE_FIRST   a receiver releases the slot before the run is its own
       PUBLISH_FIRST   a sender publishes before the run is the message's
       NO_POSITION     whether a block's position has left is not asked
       LAST_ONLY       of a run that is shared only the last position is asked for
       SHARED_READ     a receiver releases the slot before it has copied what lies in a run that is shared

   SHARED: the first sender puts two messages into one run, which is nobody's from then on. */

#ifndef KILLS
#define KILLS 1
#endif
#ifndef RUN
#define RUN 2                   /* blocks of a message, and of the pool */
#endif
#ifndef RECEIVERS
#define RECEIVERS 2
#endif
#ifdef SHARED
#define TOTAL 4
#else
#define TOTAL 3                 /* positions: the newcomer sends too */
#endif
#define OTHERS (2 + RECEIVERS)  /* than the newcomer */
#define NEW 5

#define NOBODY 0
#define HOLE 0
#define SPARE 1
#define CLAIMED 2
#define SENT 3
#define READ 4
#define OF_TWO 5                /* its number is the first position and the last */
#define WORD(kind, n, owner) ((kind) << 8 | (n) << 3 | (owner))
#define KIND(word) ((word) >> 8)
#define NUMBER(word) ((word) >> 3 & 31)
#define OWNER(word) ((word) & 7)

mtype = { UNCLAIMED, FILLING, FULL, TAKING, LEFT };

short word[RUN];
byte content[RUN];
mtype state[TOTAL] = UNCLAIMED;
byte who[TOTAL];                /* fills or takes it */
byte message[TOTAL];
bit received[TOTAL], published[TOTAL], of_two[TOTAL];
byte claimed, serial, kills = KILLS, over;
bit dead[NEW + 1];

inline may_die() {
    if
    :: atomic { kills > 0 && _pid <= OTHERS -> kills--; goto dies }
    :: skip
    fi
}

/* Whether a block with the word `old` may be claimed. Each question is a step, for things change between them. */
inline is_free() {
    if
    :: KIND(old) == HOLE || KIND(old) == SPARE -> yes = 1
    :: KIND(old) == CLAIMED -> yes = dead[OWNER(old)]
    :: KIND(old) == OF_TWO ->
        q = NUMBER(old) % TOTAL;
        do
        :: state[q] != LEFT -> yes = 0; break
#ifdef LAST_ONLY
        :: state[q] == LEFT -> yes = 1; break
#else
        :: state[q] == LEFT && q == NUMBER(old) / TOTAL -> yes = 1; break
        :: state[q] == LEFT && q > NUMBER(old) / TOTAL -> q--
#endif
        od
    :: else ->
#ifdef OWNER_FIRST
        yes = OWNER(old) == NOBODY || dead[OWNER(old)];
        yes = yes && state[NUMBER(old)] == LEFT
#else
#ifdef NO_POSITION
        yes = 1;
#else
        yes = state[NUMBER(old)] == LEFT;
#endif
        if
        :: yes && OWNER(old) != NOBODY -> yes = dead[OWNER(old)]
        :: else
        fi
#endif
    fi
}

inline send_one(text) {
#ifdef NO_SERIAL
    n = 0;
#else
    atomic { serial++; n = serial };
#endif
    b = 0;
    do
    :: b == RUN -> break
    :: else ->
        may_die();
        old = word[b];
        is_free();
        atomic {
            if
            :: yes && word[b] == old -> word[b] = WORD(CLAIMED, n, me); b++
            :: else -> yes = 0
            fi
        };
        if
        :: !yes ->                                              /* give back what there was, and try again */
            do
            :: b == 0 -> break
            :: else -> b--; word[b] = WORD(SPARE, 0, NOBODY)
            od
        :: else
        fi
    od;
    b = 0;
    do
    :: b == RUN -> break
    :: else -> may_die(); assert(word[b] == WORD(CLAIMED, n, me)); content[b] = text; b++
    od;
    may_die();
    atomic { p = claimed; claimed++; state[p] = FILLING; who[p] = me; message[p] = text };
#ifdef SHARED
    if
    :: me == 1 && text == 1 ->
        may_die();
        atomic { of_two[p] = 1; q = claimed; claimed++; state[q] = FILLING; who[q] = me; message[q] = text; of_two[q] = 1 };
        b = 0;
        do
        :: b == RUN -> break
        :: else -> may_die(); word[b] = WORD(OF_TWO, p * TOTAL + q, NOBODY); b++
        od;
        may_die();
        atomic { state[p] = FULL; published[p] = 1 };
        may_die();
        atomic { state[q] = FULL; published[q] = 1 };
        goto sent
    :: else
    fi;
#endif
#ifdef PUBLISH_FIRST
    atomic { state[p] = FULL; published[p] = 1 };
#endif
    b = 0;
    do
    :: b == RUN -> break
    :: else -> may_die(); word[b] = WORD(SENT, p, NOBODY); b++
    od;
    may_die();
#ifndef PUBLISH_FIRST
    atomic { state[p] = FULL; published[p] = 1 };
#endif
sent:
    atomic { b = 0; n = 0; p = 0; q = 0; old = 0; yes = 0 }
}

/* What there is to take: a message, or what a dead receiver had. What a dead sender was filling is passed over. */
inline receive_one() {
    atomic {
        is_there = 0;
        p = 0;
        do
        :: p == TOTAL -> break
        :: p < TOTAL && (state[p] == FULL || (state[p] == TAKING && dead[who[p]])) ->
            state[p] = TAKING; who[p] = me; is_there = 1; break
        :: p < TOTAL && state[p] == FILLING && dead[who[p]] -> state[p] = LEFT; p++
        :: else -> p++
        od
    };
    if
    :: is_there && of_two[p] ->
#ifdef SHARED_READ
        may_die();
        atomic { state[p] = LEFT; received[p] = 1 };
#endif
        b = 0;
        do
        :: b == RUN -> break
        :: else -> may_die(); assert(content[b] == message[p]); b++
        od;
        may_die();
        atomic { state[p] = LEFT; received[p] = 1 }
    :: is_there && !of_two[p] ->
#ifdef RELEASE_FIRST
        may_die();
        atomic { state[p] = LEFT; received[p] = 1 };
#endif
        b = 0;
        do
        :: b == RUN -> break
        :: else -> may_die(); word[b] = WORD(READ, p, me); b++
        od;
        may_die();
#ifndef RELEASE_FIRST
        atomic { state[p] = LEFT; received[p] = 1 };
#endif
        b = 0;
        do
        :: b == RUN -> break
        :: else -> may_die(); assert(content[b] == message[p]); b++
        od;
        b = 0;
        do
        :: b == RUN -> break
        :: else -> may_die(); assert(word[b] == WORD(READ, p, me)); word[b] = WORD(SPARE, 0, NOBODY); b++
        od
    :: else
    fi;
    atomic { b = 0; p = 0 }
}

/* The blocks of a number that is about to be ours, and then its slots. */
inline sweep() {
    b = 0;
    do
    :: b == RUN -> break
    :: else ->
        old = word[b];
        if
        :: KIND(old) == CLAIMED && OWNER(old) == me ->
            atomic { if :: word[b] == old -> word[b] = WORD(HOLE, 0, NOBODY) :: else fi }
        :: KIND(old) == READ && OWNER(old) == me ->
            yes = state[NUMBER(old)] == LEFT;
            atomic {
                if
                :: word[b] == old && yes -> word[b] = WORD(SPARE, 0, NOBODY)
                :: word[b] == old && !yes -> word[b] = WORD(SENT, NUMBER(old), NOBODY)
                :: else
                fi
            }
        :: else
        fi;
        b++
    od;
    b = 0;
    do
    :: b == TOTAL -> break
    :: else ->
        atomic {
            if
            :: state[b] == FILLING && who[b] == me -> state[b] = LEFT
            :: state[b] == TAKING && who[b] == me -> who[b] = NOBODY
            :: else
            fi;
            b++
        }
    od;
    atomic { b = 0; old = 0; yes = 0 }
}

proctype Sender(byte me) {
    byte p, q, b, n;
    short old;
    bit yes;
    send_one(me);
dies:
    atomic { dead[me] = 1; over++; p = 0; q = 0; b = 0; n = 0; old = 0; yes = 0 }
}

proctype Receiver(byte me) {
    byte p, b;
    bit is_there;
    receive_one();
dies:
    atomic { dead[me] = 1; over++; p = 0; b = 0; is_there = 0 }
}

/* Somebody new, who gets the number of one that has gone, receives what it finds, and sends; it is not killed. */
proctype Newcomer() {
    byte me, p, q, b, n;
    short old;
    bit yes, is_there;
    atomic {
        if
#ifdef REUSE
        :: dead[1] -> me = 1
        :: dead[3] -> me = 3
#endif
        :: over == OTHERS -> me = NEW
        fi;
        kills = (over == OTHERS -> 0 : kills);
        dead[me] = 0
    };
#ifndef NO_SWEEP
    sweep();
#endif
    receive_one();
    send_one(me + 8);
    do
    :: over == OTHERS ->
        receive_one();
        if
        :: !is_there -> break
        :: else
        fi
    od;
dies:
    atomic {
        b = 0;
        do
        :: b == TOTAL -> break
        :: else -> assert(state[b] == UNCLAIMED || state[b] == LEFT); assert(published[b] == received[b]); b++
        od;
        b = 0;
        do
        :: b == RUN -> break
        :: else -> old = word[b]; is_free(); assert(yes); b++
        od
    }
}

init {
    atomic {
        dead[NOBODY] = 1;                                       /* what nobody is taking may be taken */
        run Sender(1); run Sender(2); run Receiver(3);
        if
        :: RECEIVERS == 2 -> run Receiver(4)
        :: else
        fi;
        run Newcomer()
    }
}
