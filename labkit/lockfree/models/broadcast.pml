/* The ring of labkit/lockfree/broadcast.py: messages of any length, a writer that never waits, a reader that is
   overrun. The writer may be killed after any store, and another then takes its role.

   SPIN executes statements in their order, processors do not. So what the code leaves unordered is unordered here: the
   stores of a message happen in any order after edge O's release fence and before edge A's release store, the loads of a
   message in any order after edge A's acquire load and before edge O's acquire fence. What is broken on purpose takes
   such a limit away.

   A cell is a word of the ring. A frame has its number and its size beside its first cell (NUMBER, SIZE), which are
   words of their own in the code, and loaded and stored one by one here too. Functions and names are those of the code.
   What a cell holds is the message and the writer that wrote it, so that a message of two writers is found out.

   Checked
       what is received is what was published under that number, whole, and in order
       what was missed is counted exactly: received and missed together are all that was published
       nothing is ever found CORRUPT: neither by a reader that is overrun, nor by the next writer after any death

   Broken on purpose
       EDGE_A        WRITTEN is seen before the message is                              (its store is no release)
       EDGE_A_LOAD   the message is loaded before WRITTEN is                            (its load is no acquire)
       EDGE_O        a byte is overwritten before OLDEST says so                        (no release fence)
       EDGE_O_LOAD   OLDEST is loaded before the last byte is                           (no acquire fence)
       EDGE_N        who catches up loads WRITTEN before OLDEST                         (its load is no acquire)
       NO_ROOM       no room is kept for the number of the next message
       OLDEST_ONLY   the next writer goes on at OLDEST and does not look at WRITTEN
   Variants
       KILLS         how many writers are killed (1 unless given)
       MARKS         a reader that has been overrun goes on at a mark further on, which may be old
*/
#ifndef KILLS
#define KILLS 1
#endif
#define MESSAGES 5
#define CAPACITY 4
#define SIZE_OF(n) (1 + ((n) & 1))          /* cells of message n: at most half of the ring */
#define CELL(p)  ((p) % CAPACITY)
#define NONE     255

byte OLDEST, WRITTEN, MARK;
byte NUMBER[CAPACITY], SIZE[CAPACITY], DATA[CAPACITY];

byte content[MESSAGES];                     /* what the model knows: what was published under each number */
byte published;
byte kills;
bit done;                                   /* there will be no writer any more: segment.role */

#define MAY_DIE \
    if \
    :: skip \
    :: kills < KILLS -> kills++; goto dies \
    fi

/* Stores that the code does not order among themselves. */
#define NUMBER_OF_FRAME 1                   /* with a padding: of the frame behind it, and that it is one */
#define PADDING         2
#define FIRST_CELL      4
#define SECOND_CELL     8
#define SIZE_OF_FRAME   16
#define NEXT_NUMBER     32
#define FORGET          64
#define PUBLISH         128

/* A limit between stores: those of `before` are done first. */
#define AFTER(before)   ((todo & (before)) == 0)
#define THE_MESSAGE     (NUMBER_OF_FRAME | PADDING | FIRST_CELL | SECOND_CELL | SIZE_OF_FRAME | NEXT_NUMBER)
#ifdef EDGE_O
#define FENCE           true
#else
#define FENCE           AFTER(FORGET)
#endif
#ifdef EDGE_A
#define RELEASE         AFTER(FORGET)
#else
#define RELEASE         AFTER(FORGET | THE_MESSAGE)
#endif
#ifdef NO_ROOM
#define ONE_MORE 0
#else
#define ONE_MORE 1
#endif

active proctype Writer() {
    byte me = 1, written, oldest, position, size, number, todo, k;
again:
    do
    :: published < MESSAGES ->
        atomic {                                                /* claim: only the writer writes these */
            MAY_DIE;
            written = WRITTEN; oldest = OLDEST;
#ifdef OLDEST_ONLY
            written = oldest;
#endif
            assert(oldest <= written && written - oldest <= CAPACITY);          /* CORRUPT */
            number = NUMBER[CELL(written)];
            assert(number == published);
            size = SIZE_OF(number);
            position = written;
            todo = FIRST_CELL | SIZE_OF_FRAME | NEXT_NUMBER | PUBLISH;
            if
            :: size == 2 -> todo = todo | SECOND_CELL
            :: else
            fi;
            if
            :: CELL(written) + size > CAPACITY ->
                position = written + CAPACITY - CELL(written);
                todo = todo | NUMBER_OF_FRAME | PADDING
            :: else
            fi;
            do                                                  /* what is still whole is the writer's to read */
            :: oldest + CAPACITY < position + size + ONE_MORE ->
                assert(oldest < written);
                oldest = oldest + (SIZE[CELL(oldest)] -> SIZE[CELL(oldest)] : CAPACITY - CELL(oldest));
                todo = todo | FORGET
            :: else -> break
            od
        };
        do
        :: atomic { todo & FORGET -> MAY_DIE; OLDEST = oldest; todo = todo & ~FORGET }          /* edge N, edge O */
        :: atomic { todo & NUMBER_OF_FRAME && FENCE -> MAY_DIE; NUMBER[0] = number; todo = todo & ~NUMBER_OF_FRAME }
        :: atomic { todo & PADDING && FENCE -> MAY_DIE; SIZE[CELL(written)] = 0; todo = todo & ~PADDING }
        :: atomic { todo & FIRST_CELL && FENCE -> MAY_DIE; DATA[CELL(position)] = me << 4 | number;
                    todo = todo & ~FIRST_CELL }
        :: atomic { todo & SECOND_CELL && FENCE -> MAY_DIE; DATA[CELL(position + 1)] = me << 4 | number;
                    todo = todo & ~SECOND_CELL }
        :: atomic { todo & SIZE_OF_FRAME && FENCE -> MAY_DIE; SIZE[CELL(position)] = size; todo = todo & ~SIZE_OF_FRAME }
        :: atomic { todo & NEXT_NUMBER && FENCE -> MAY_DIE; NUMBER[CELL(position + size)] = number + 1;
                    todo = todo & ~NEXT_NUMBER }
        :: atomic { todo & PUBLISH && RELEASE -> MAY_DIE;
                    content[number] = me << 4 | number; published = number + 1;
                    WRITTEN = position + size; todo = todo & ~PUBLISH }                         /* edge A */
        :: atomic { todo == 0 -> break }
        od;
#ifdef MARKS
        atomic { MAY_DIE; MARK = position + size };
#endif
    :: else -> break
    od;
    atomic { done = 1; written = 0; oldest = 0; position = 0; size = 0; number = 0 };
    goto ends;
dies:
    atomic { me++; written = 0; oldest = 0; position = 0; size = 0; number = 0; todo = 0; k = 0 };
    goto again;                                                 /* the next writer has nothing to repair */
ends:
    skip
}

/* A reader's loads of a frame or of a message, in any order; OLDEST after them. */
#define L_WRITTEN 1
#define L_NUMBER  2
#define L_SIZE    4
#define L_FIRST   8
#define L_SECOND  16
#define L_OLDEST  32
#ifdef EDGE_A_LOAD
#define ACQUIRED  true
#else
#define ACQUIRED  AFTER(L_WRITTEN)
#endif
#ifdef EDGE_O_LOAD
#define FENCED    AFTER(L_WRITTEN)
#else
#define FENCED    AFTER(L_WRITTEN | L_NUMBER | L_SIZE | L_FIRST | L_SECOND)
#endif

inline load(what) {
    todo = what;
    do
    :: atomic { todo & L_WRITTEN -> seen = WRITTEN; todo = todo & ~L_WRITTEN }                  /* edge A */
    :: atomic { todo & L_NUMBER && ACQUIRED -> number = NUMBER[CELL(position)]; todo = todo & ~L_NUMBER }
    :: atomic { todo & L_SIZE && ACQUIRED -> size = SIZE[CELL(position)]; todo = todo & ~L_SIZE }
    :: atomic { todo & L_FIRST -> first = DATA[CELL(position)]; todo = todo & ~L_FIRST }
    :: atomic { todo & L_SECOND -> second = DATA[CELL(position + 1)]; todo = todo & ~L_SECOND }
    :: atomic { todo & L_OLDEST && FENCED -> oldest = OLDEST; todo = todo & ~L_OLDEST }         /* edge O: is_whole */
    :: atomic { todo == 0 -> break }
    od
}

active proctype Reader() {
    byte position, next, seen, number, size, first, second, oldest, todo, received, missed;
    do
    ::  atomic {
            if
            :: done && WRITTEN == position -> break             /* Closed */
            :: else
            fi
        };
        load(L_WRITTEN | L_NUMBER | L_SIZE | L_OLDEST);         /* next_message */
        if
        :: seen == position                                     /* EMPTY */
        :: seen != position && oldest <= position ->
            assert(seen > position && seen - position <= CAPACITY && number == next);       /* else CORRUPT */
            if
            :: size == 0 ->                                     /* a padding */
                assert(seen - position > CAPACITY - CELL(position));
                position = position + CAPACITY - CELL(position)
            :: else ->
                assert(size <= CAPACITY - CELL(position) && size <= seen - position);
                if
                :: size == 2 -> load(L_FIRST | L_SECOND | L_OLDEST)             /* take_message */
                :: else -> load(L_FIRST | L_OLDEST); second = first
                fi;
                atomic {
                    if
                    :: oldest <= position ->                    /* received */
                        assert(first == content[next] && second == first && size == SIZE_OF(next));
                        position = position + size; next++; received++
                    :: else -> goto overrun
                    fi
                }
            fi
        :: else ->
overrun:    size = 0;                                           /* catch_up */
            do
            ::
#ifdef EDGE_N
                seen = WRITTEN; oldest = OLDEST;
#else
                oldest = OLDEST; seen = WRITTEN;                /* edge N */
#endif
                assert(oldest <= seen);                         /* CORRUPT */
                position = oldest;
#ifdef MARKS
                first = MARK;
                if
                :: first >= oldest && first <= seen -> position = first
                :: else
                fi;
#endif
                load(L_NUMBER | L_OLDEST);                      /* _look */
                if
                :: oldest <= position -> break
                :: else                                         /* overrun once more */
                fi
            od;
            assert(number >= next);                             /* CORRUPT */
            missed = missed + number - next;
            next = number
        fi;
        atomic { seen = 0; number = 0; size = 0; first = 0; second = 0; oldest = 0 }
    od;
    assert(received + missed == MESSAGES && next == MESSAGES)
}
