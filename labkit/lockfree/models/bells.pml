/* The bells of labkit/lockfree/bells.py: nobody sleeps while there is something for it.

   Run     spin -run bells.pml                    everything holds
           spin -DNO_BARRIER -run bells.pml       one thing is broken, and SPIN finds how somebody then sleeps for ever

   SPIN executes statements one after another (sequentially consistent), processors do not: a store waits in the store
   buffer of its processor while later loads are already done. That is the whole difficulty of edge S, so the buffer is
   in the model. `written` is what a process that publishes has stored, `items` is what others see of it, and the
   process Buffers carries the one to the other at any later time. A locked instruction (atomics.keep_bits, add_int)
   empties the buffer of its own processor, fence() does too, and membarrier(2) empties those of all.

   What is published is a count: which item goes to whom is the business of the queues' own models; to take one is
   atomic here. Who waits takes its share and leaves, so that nobody is saved by another who looks again.

   Broken on purpose
       NO_BARRIER      who waits does not run membarrier(2)
       NO_FENCE        with FENCED: who rings does not fence
       EXCHANGED       the compiler exchanges the two accesses of who publishes: no compiler_fence() in `ring`
       NO_SECOND_LOOK  who waits does not look again after arming
       TICKET_LATE     who waits takes its ticket after that second look
       ONE_COUNT       with POLLERS=2: both wait for the eventfd itself and read(2) its count, which is gone for the other
   Variants
       FENCED          somebody has no membarrier(2): the bit FENCED is set, from the beginning
       KILL            who rings may be killed after any instruction. Somebody may then sleep for ever, therefore
       LOOK_AGAIN      nobody sleeps longer than LOOK_AGAIN_NS. Nothing above may depend on it, so it is off
       POLLERS         how many of those who wait poll a descriptor (1 unless given), the others sleep in futex(2)
*/
#ifndef POLLERS
#define POLLERS 1
#endif
#define RINGERS  2
#define WAITERS  2
#define MESSAGES 1          /* of each that publishes */
#define SHARE    (RINGERS * MESSAGES / WAITERS)

byte written[RINGERS];      /* stores that have been executed */
byte items[RINGERS];        /* those that others see */
byte taken;

bit sleeps, polls;          /* bits of the word WAITERS */
byte ticket;                /* the futex word */
bit asleep[WAITERS];        /* in futex(2) */
bit edge[WAITERS];          /* epoll_wait(2) will tell who polls of a write to the eventfd (edge-triggered, one each) */

bit killed[RINGERS];
byte left;                  /* who publishes and has ended; others know it by its lock, which the Linux kernel drops */
byte content;               /* who waited and has ended */

#define THERE   (items[0] + items[1] > taken)
#define SETTLED (items[0] == written[0] && items[1] == written[1])
#define NO_MORE (left == RINGERS && SETTLED && !THERE)

/* Every store arrives at last, those of the dead too. */
active proctype Buffers() {
end:
    do
    :: d_step { items[0] < written[0] -> items[0]++ }
    :: d_step { items[1] < written[1] -> items[1]++ }
    od
}

#ifdef KILL
active proctype Killer() {
    if
    :: killed[0] = 1
    :: killed[1] = 1
    :: skip
    fi
}
#endif

inline publish() { written[me]++ }                  /* store_release: into the buffer */

inline _wake() {
#if defined(FENCED) && !defined(NO_FENCE)
    items[me] = written[me];                        /* edge S, where somebody cannot do our part: fence() */
#endif
    if
    :: sleeps || polls ->
        d_step {                                    /* keep_bits */
            items[me] = written[me];
            slept = sleeps; polled = polls; sleeps = 0; polls = 0
        };
        if
        :: slept ->
            ticket++;                               /* add_int */
            d_step { asleep[0] = 0; asleep[1] = 0; slept = 0 }      /* FUTEX_WAKE */
        :: else
        fi;
        if
        :: polled -> d_step { edge[0] = 1; edge[1] = 1; polled = 0 }        /* write(2) */
        :: else
        fi
    :: else
    fi
}

/* A process that publishes, and rings. */
proctype Ringer(byte me) {
    byte sent;
    bit seen, slept, polled;
    {
        do
        :: sent < MESSAGES ->
#ifdef EXCHANGED
            seen = sleeps || polls;
            publish();
#else
            publish();
            seen = sleeps || polls;                 /* ring: the one load */
#endif
            sent++;
#ifdef FENCED
            _wake()                                 /* the bit FENCED is in the word that was loaded */
#else
            if
            :: seen -> d_step { seen = 0 }; _wake()
            :: else
            fi
#endif
        :: else -> break
        od
    } unless { killed[me] };
    left++
}

/* A process that waits for its share of the items. */
proctype Waiter(byte me; bit poller) {
    byte mine, before;
again:
    do
    :: d_step { THERE -> taken++; mine++; before = 0 };
        if
        :: mine == SHARE -> break
        :: else
        fi
    :: !THERE && !NO_MORE ->
        before = ticket;                            /* seen */
        if
        :: poller ->
#ifndef ONE_COUNT
            edge[me] = 0;                           /* take what was told before: look again afterwards */
#endif
            polls = 1                               /* arm: set_bits */
        :: else -> sleeps = 1
        fi;
#if !defined(NO_BARRIER) && !defined(FENCED)
        d_step { items[0] = written[0]; items[1] = written[1] };    /* arm: membarrier(2), edge S */
#endif
#ifndef NO_SECOND_LOOK
        if
        :: THERE -> goto again
        :: else
        fi;
#endif
#ifdef TICKET_LATE
        before = ticket;
#endif
        if
        :: poller ->
            if
#ifdef ONE_COUNT
            :: d_step { edge[0] -> edge[0] = 0; edge[1] = 0 }       /* read(2): and nobody else is told */
#else
            :: edge[me] -> edge[me] = 0
#endif
            :: NO_MORE                              /* who waits looks at the locks now and then */
#ifdef LOOK_AGAIN
            :: timeout
#endif
            fi
        :: else ->
            d_step {                                /* FUTEX_WAIT sleeps only if it is still this ticket */
                if
                :: ticket == before -> asleep[me] = 1
                :: else
                fi
            };
            if
            :: !asleep[me]
            :: NO_MORE -> asleep[me] = 0
#ifdef LOOK_AGAIN
            :: timeout -> asleep[me] = 0
#endif
            fi
        fi
    :: NO_MORE -> break
    od;
    content++
}

init {
    atomic {
        run Ringer(0); run Ringer(1);
        run Waiter(0, POLLERS > 0); run Waiter(1, POLLERS > 1)
    };
    content == WAITERS && left == RINGERS && SETTLED;      /* nobody sleeps for ever */
    assert(!THERE)                                         /* and whatever was published was received */
}
