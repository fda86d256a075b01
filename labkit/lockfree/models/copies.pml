/* Items of labkit/lockfree/spsc.py, and the copy of one that a sender leaves beside WRITE. The sender may be killed after
   any instruction, the receiver too, and another one then takes its role.

   Checked: what is received at each position is what was published there, in order, whether it came by the copy or by
   the slot. Nobody waits for ever.

   An item is the number of the attempt to send one: so one that a dead sender had begun, and what its successor sends to
   the same place, are two. A sender chooses freely what it does: an item with a copy, for a receiver that follows, or
   without one; two at once; a loan.

   Broken on purpose
       COPY_FIRST  COPY is stored before COPY_OF
       ASKED_FIRST COPY_OF is looked at before COPY, not afterwards
       NEWEST      the copy is taken whatever COPY_OF says
       HEIRLOOM    who leaves no copy does not look whether a dead sender has left one
       LOAN        the same of who publishes a loan
       EDGE_A      the store of WRITE is no release: it is seen before COPY is
*/
#define ITEMS 4             /* positions */
#define CAPACITY 2
#define SLOT(p) ((p) % CAPACITY)
#ifndef KILLS
#define KILLS 1             /* of senders, at most, and one of a receiver */
#endif

byte WRITE, COPY_OF, COPY;  /* the sender's line */
byte READ;                  /* the receiver's line */
byte SLOTS[CAPACITY];

/* What the model knows, and no process looks at. */
byte attempt;               /* the last number given to an item */
byte published[ITEMS];      /* by position */
bit kill_sender, kill_receiver;

active proctype Killer() {
    byte senders;
    do
    :: senders < KILLS -> senders++; kill_sender = 1
    :: break
    od;
    if
    :: kill_receiver = 1
    :: skip
    fi;
    senders = 0
}

active proctype Sender() {
    byte write, count;
    bit copies;
again: {
    do
    :: WRITE < ITEMS ->
        write = WRITE;
        if
        :: count = 1
        :: write + 2 <= ITEMS -> count = 2
        fi;
        (write + count - READ <= CAPACITY);                     /* edge B; wait for room */
        SLOTS[SLOT(write)] = attempt + 1;
        if
        :: count == 2 -> SLOTS[SLOT(write + 1)] = attempt + 2
        :: count == 1 ->
            if
            :: copies = 1                                       /* the receiver follows */
#ifdef HEIRLOOM
            :: copies = 0
#else
            :: copies = (COPY_OF > write)
#endif
#ifdef LOAN
            :: copies = 0
#else
            :: COPY_OF = 0; copies = 0                          /* a loan: leave_no_copy */
#endif
            fi;
            if
            :: copies ->                                        /* leave_copy: edge D */
#ifdef COPY_FIRST
                COPY = attempt + 1;
                COPY_OF = write + 1
#else
                COPY_OF = write + 1;
#ifndef EDGE_A
                COPY = attempt + 1
#endif
#endif
            :: else
            fi
        fi;
        atomic {                                                /* publish: edge A */
            WRITE = write + count;
            published[write] = attempt + 1;
            if
            :: count == 2 -> published[write + 1] = attempt + 2
            :: else
            fi
        };
#ifdef EDGE_A
        if
        :: count == 1 && copies -> COPY = attempt + 1
        :: else
        fi;
#endif
        atomic { attempt = attempt + count; write = 0; count = 0; copies = 0 }
    :: else -> break
    od
    } unless { kill_sender };
    if
    :: kill_sender ->                                           /* another one takes the role, and sends others */
        atomic { kill_sender = 0; attempt = attempt + 2; write = 0; count = 0; copies = 0 };
        goto again
    :: else
    fi
}

active proctype Receiver() {
    byte read, write, item, whose;
again: {
    do
    :: READ < ITEMS ->
        read = READ;
        (WRITE != read);                                        /* wait */
        write = WRITE;                                          /* edge A */
        whose = 0; item = 0;
        if
        :: write == read + 1 ->                                 /* has_copy */
#ifdef ASKED_FIRST
            whose = COPY_OF;
            item = COPY                                         /* edge D */
#else
            item = COPY;
            whose = COPY_OF                                     /* edge D */
#endif
        :: else
        fi;
        if
#ifdef NEWEST
        :: write == read + 1
#else
        :: write == read + 1 && whose == write
#endif
        :: else -> item = SLOTS[SLOT(read)]
        fi;
        assert(item == published[read]);
        READ = read + 1                                         /* edge B */
    :: else -> break
    od
    } unless { kill_receiver };
    if
    :: kill_receiver -> atomic { kill_receiver = 0; read = 0; write = 0; item = 0; whose = 0 }; goto again
    :: else
    fi
}
