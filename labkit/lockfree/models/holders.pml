/* Who may still send: `arrive`, `join`, `leave` and `anybody` of labkit/lockfree/mpmc.py, Segment.place.

   A parent that has a queue launches senders, one after the other, and closes its own copy at last. Each sender comes up
   when it likes, takes the first number that is free, gives up the place that its parent has taken for it, sends one
   message and closes. A receiver that finds the queue empty looks through all numbers, one at a time, and ends when
   nobody is left who may send. A sender may be killed at any moment: then its locks are gone, and what it has written of
   itself stays.

   Numbers are given again: to who comes first, lowest first, so that somebody may get one that the receiver has looked
   at already from somebody who leaves before the receiver has come to that one.

   Checked
       when the receiver has ended, nobody is left who may send, and all that was sent is received
       the receiver does end

   Broken on purpose
       AT_FIRST_SEND   who has not sent yet does not count
       AT_ARRIVAL      who has not arrived yet does not count: no places
       PLACE_FIRST     who arrives gives up its place before it has a number of its own
       NO_COUNT        the receiver does not look whether somebody has got a number meanwhile
       COUNT_LATE      ARRIVALS is counted after the place was given up
       LOCKS_STAY      a dead process keeps its lock (a pid of which nobody can say whether it lives, for instance)
   Variants
       KILLS           how many senders are killed (1 unless given)
*/
#ifndef KILLS
#define KILLS 1
#endif
#define SENDERS 2
#define NUMBERS 6               /* 0 is the receiver, 1 the parent at first */

#define NOTHING 0
#define MAY     1
#define SENDS   2
byte parts[NUMBERS];
bit locked[NUMBERS];
byte arrivals;
bit ever;

byte sent, received;            /* the queue: so many messages have been sent */
byte places[SENDERS];           /* where each sender is kept a place */
bit launched[SENDERS];
byte kills, over;

#define IS(n)   (parts[n] != NOTHING && locked[n])
#define ANYBODY (IS(0) || IS(1) || IS(2) || IS(3) || IS(4) || IS(5))

inline enter(mine) {            /* Segment._number: the first lock that can be had; then Mpmc._arrive */
    atomic {
        n = 0;
        do
        :: locked[n] -> n++
        :: else -> break
        od;
        locked[n] = 1; parts[n] = NOTHING; mine = n; n = 0          /* sweep */
    };
    parts[mine] = MAY;          /* arrive */
#ifndef COUNT_LATE
    arrivals++
#endif
}

inline leave(number) {          /* nobody would see the lock go: it is looked at only where PARTS says something */
    parts[number] = NOTHING;
    locked[number] = 0
}

#define MAY_DIE \
    if \
    :: skip \
    :: kills < KILLS -> kills++; goto dies \
    fi

proctype Sender(byte me) {
    byte mine = NUMBERS, n;
    bit kept;                   /* our place is still kept */
    launched[me];
#ifndef AT_ARRIVAL
    kept = 1;
#endif
    atomic { MAY_DIE };
#ifdef PLACE_FIRST
    leave(places[me]);
    kept = 0;
    enter(mine);
#else
    enter(mine);
    atomic { MAY_DIE };
#ifndef AT_ARRIVAL
    leave(places[me]);
    kept = 0;
#endif
#endif
#ifdef COUNT_LATE
    arrivals++;
#endif
#ifdef AT_FIRST_SEND
    parts[mine] = NOTHING;
#endif
    atomic { MAY_DIE; parts[mine] = SENDS };                            /* join */
    ever = 1;
    atomic { MAY_DIE; sent++ };
    atomic { MAY_DIE; parts[mine] = NOTHING };                          /* leave */
    locked[mine] = 0;
    goto ends;
dies:
#ifndef LOCKS_STAY
    atomic {
        if
        :: kept -> locked[places[me]] = 0
        :: else
        fi;
        if
        :: mine < NUMBERS -> locked[mine] = 0
        :: else
        fi
    };
#endif
ends:
    atomic { mine = 0; n = 0; kept = 0; over++ }
}

proctype Parent() {
    byte next, n;
    do
    :: next < SENDERS ->
#ifndef AT_ARRIVAL
        enter(places[next]);    /* Segment.place */
#endif
        launched[next] = 1;
        next++
    :: else -> break
    od;
    leave(1);
    atomic { next = 0; over++ }
}

proctype Receiver() {
    byte n, before;
    bit anybody, gone, in_vain;
    do
    ::  atomic {
            received = sent;
            if
            :: gone -> break    /* Closed, after a last look */
            :: else
            fi
        };
        before = arrivals;
        do
        :: n < NUMBERS && !anybody -> anybody = IS(n); n++
        :: else -> break
        od;
#ifdef NO_COUNT
        gone = !anybody && ever;
#else
        gone = !anybody && ever && arrivals == before;
#endif
        atomic {                /* sleep; ten times a second we look again */
            n = 0; before = 0; anybody = 0;
            if
            :: gone
            :: !gone && (sent > received || (!ANYBODY && ever))
            :: !gone && over == SENDERS + 1 && !ever -> in_vain = 1; break        /* TimeoutError: nobody ever sent */
            fi
        }
    od;
    atomic { assert(in_vain || !ANYBODY); gone = 0; in_vain = 0 };
    over == SENDERS + 1;        /* and whatever they still do, they send nothing */
    assert(received == sent)
}

init {
    atomic {
        locked[0] = 1; locked[1] = 1; parts[1] = MAY; arrivals = 1;
        run Receiver(); run Parent(); run Sender(0); run Sender(1)
    }
}
