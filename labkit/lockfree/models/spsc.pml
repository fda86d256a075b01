/* The ring of labkit/lockfree/spsc.py: messages of any length, one sender, one receiver. Either may be killed after any
   instruction, and another one then takes its role.

   Checked: a message is received whole, in order, and once, unless its receiver is killed before its release: then
   once more, by the next. Nobody waits for ever. No position is ever found CORRUPT.

   A word of the ring is a word here; the copies of a message are one step a word, so that a death leaves any part of it.

   Broken on purpose
       EDGE_A   the store of WRITE is no release: it is seen before the last word of the message
       EDGE_B   the store of READ is no release: it is seen before the words of the message were read
       STALE    READ_SEEN is trusted although it is only a hint that may be too old: full for ever
*/
#define MESSAGES 4
#define KILLS    2          /* of each side, at most */
#define CAPACITY 4          /* words */
#define FRAME    1          /* the word with the length */

#define SLOT(p)    ((p) % CAPACITY)
#define LENGTH(m)  (1 + ((m) > 0))          /* of message m; its words all hold m + 1 */

byte WRITE, READ_SEEN;      /* the sender's line */
byte READ, WRITE_SEEN;      /* the receiver's line */
byte DATA[CAPACITY];

#ifdef EDGE_B
#define MESSAGE received
#else
#define MESSAGE (received + 1)
#endif

byte published, received;   /* messages: what the model knows, and no process looks at */
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
    byte write, read, size, k;
again: {
    do
    :: published < MESSAGES ->
        size = FRAME + LENGTH(published);
        write = WRITE;                                          /* reserve */
        if
        :: write - READ_SEEN > CAPACITY - size ->
            read = READ;                                        /* edge B */
            assert(read <= write && write - read <= CAPACITY);
#ifndef STALE
            READ_SEEN = read;
#endif
            if
            :: write - READ_SEEN > CAPACITY - size ->           /* FULL: wait, and begin again */
                READ != read;
                goto again
            :: else
            fi
        :: else
        fi;
        DATA[SLOT(write)] = size - FRAME;                       /* send_message */
        k = FRAME;
        do                                                      /* copy_in */
#ifdef EDGE_A
        :: k < size - 1 -> DATA[SLOT(write + k)] = published + 1; k++
#else
        :: k < size -> DATA[SLOT(write + k)] = published + 1; k++
#endif
        :: else -> break
        od;
        atomic { WRITE = write + size; published++ };           /* publish: edge A */
#ifdef EDGE_A
        DATA[SLOT(write + k)] = published;
#endif
    :: else -> break
    od
    } unless { kill_sender };
    atomic { write = 0; read = 0; size = 0; k = 0 };
    if
    :: kill_sender -> kill_sender = 0; goto again               /* another one takes the role */
    :: else -> sender_done = 1
    fi
}

active proctype Receiver() {
    byte read, size, k;
    short there;
again: {
    do
    :: read = READ;                                             /* readable */
        there = WRITE_SEEN - read;
        if
        :: there <= 0 ->
            there = WRITE - read;                               /* edge A */
            WRITE_SEEN = there + read
        :: else
        fi;
        assert(there >= 0 && there <= CAPACITY);
        if
        :: there == 0 ->                                        /* EMPTY */
            if
            :: WRITE != read
            :: sender_done && WRITE == read -> break            /* Closed */
            fi
        :: else ->
            size = DATA[SLOT(read)];                            /* next_message */
            assert(size == LENGTH(received) && FRAME + size <= there);
#ifdef EDGE_B
            atomic { READ = read + FRAME + size; received++ };
#endif
            k = FRAME;
            do                                                  /* take_message: copy_out */
            :: k < FRAME + size -> assert(DATA[SLOT(read + k)] == MESSAGE); k++
            :: else -> break
            od;
#ifndef EDGE_B
            atomic { READ = read + FRAME + size; received++ }   /* release: edge B */
#endif
        fi
    od
    } unless { kill_receiver };
    atomic { read = 0; size = 0; k = 0; there = 0 };
    if
    :: kill_receiver -> kill_receiver = 0; goto again
    :: else -> assert(received == published && published == MESSAGES)
    fi
}
