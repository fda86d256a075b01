// The C++ queues that labkit's are compared with: compiled into a shared library by `labkit bench queue`.
//
// Two twins of our own, as short as the ideas are, and boost::lockfree where its headers are installed. All of them lie
// in zeroed shared memory at the given address, and hold no pointers, so that each process may map them elsewhere.
//
// NAME_produce and NAME_consume move `count` items one by one and spin, with pause, when the queue is full or empty;
// consume returns the sum of what came. NAME_ping and NAME_pong send one item to and fro through two queues.
// c++ -std=c++17 -O3 -DNDEBUG -march=native -fPIC -shared peers.cpp

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <sched.h>

#if __has_include(<boost/lockfree/queue.hpp>)
#include <boost/lockfree/queue.hpp>
#include <boost/lockfree/spsc_queue.hpp>
#define HAVE_BOOST 1
#endif

#if defined(__x86_64__)
static inline void relax() { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
static inline void relax() { asm volatile("yield"); }
#else
static inline void relax() {}
#endif

// Who has looked often lets others run, of whom it may be one that it waits for: as labkit.bench.loops_entry.patient.
static inline void patient(int &looked) {
    relax();
    if (++looked == 20000) {
        sched_yield();
        looked = 0;
    }
}

constexpr std::size_t LINE = 64;

// The whole item is there in memory, and may have changed: else a compiler would move only the parts that are looked at.
template <class T> static inline void whole(T &item) {
    if (sizeof(T) > 8)
        asm volatile("" : "+m"(item));
}

struct Item8 {
    std::uint64_t value;
};

struct Item64 {
    std::uint64_t value;
    std::uint64_t rest[7];
};

// One producer, one consumer. Each keeps, on its own line, the newest index of the other that it has seen, and looks at
// the real one only when that does not suffice; one slot stays empty. After rigtorp/SPSCQueue.
template <class T> class Spsc {
  public:
    void create(std::size_t slots) { size = slots + 1; }

    bool try_push(const T &item) {
        const auto at = write.load(std::memory_order_relaxed);
        const auto next = at + 1 == size ? 0 : at + 1;
        if (next == read_seen) {
            read_seen = read.load(std::memory_order_acquire);
            if (next == read_seen)
                return false;
        }
        slots()[at] = item;
        write.store(next, std::memory_order_release);
        return true;
    }

    bool try_pop(T &item) {
        const auto at = read.load(std::memory_order_relaxed);
        if (at == write_seen) {
            write_seen = write.load(std::memory_order_acquire);
            if (at == write_seen)
                return false;
        }
        item = slots()[at];
        read.store(at + 1 == size ? 0 : at + 1, std::memory_order_release);
        return true;
    }

  private:
    T *slots() { return reinterpret_cast<T *>(this + 1); }

    std::size_t size;
    alignas(LINE) std::atomic<std::size_t> write;
    alignas(LINE) std::size_t read_seen;
    alignas(LINE) std::atomic<std::size_t> read;
    alignas(LINE) std::size_t write_seen;
};

// Many producers, many consumers: each slot's sequence says whose turn it is. After D. Vyukov's bounded MPMC queue.
template <class T> class Vyukov {
  public:
    void create(std::size_t slots) {
        mask = slots - 1;
        for (std::size_t n = 0; n < slots; n++)
            cells()[n].sequence.store(n, std::memory_order_relaxed);
        std::atomic_thread_fence(std::memory_order_release);
    }

    bool try_push(const T &item) {
        auto at = write.load(std::memory_order_relaxed);
        for (;;) {
            auto &cell = cells()[at & mask];
            const auto turn = static_cast<std::ptrdiff_t>(cell.sequence.load(std::memory_order_acquire) - at);
            if (turn < 0)
                return false;
            if (turn > 0) {
                at = write.load(std::memory_order_relaxed);
            } else if (write.compare_exchange_weak(at, at + 1, std::memory_order_relaxed)) {
                cell.item = item;
                cell.sequence.store(at + 1, std::memory_order_release);
                return true;
            }
        }
    }

    bool try_pop(T &item) {
        auto at = read.load(std::memory_order_relaxed);
        for (;;) {
            auto &cell = cells()[at & mask];
            const auto turn = static_cast<std::ptrdiff_t>(cell.sequence.load(std::memory_order_acquire) - (at + 1));
            if (turn < 0)
                return false;
            if (turn > 0) {
                at = read.load(std::memory_order_relaxed);
            } else if (read.compare_exchange_weak(at, at + 1, std::memory_order_relaxed)) {
                item = cell.item;
                cell.sequence.store(at + mask + 1, std::memory_order_release);
                return true;
            }
        }
    }

  private:
    struct Cell {
        std::atomic<std::size_t> sequence;
        T item;
    };

    Cell *cells() { return reinterpret_cast<Cell *>(this + 1); }

    std::size_t mask;
    alignas(LINE) std::atomic<std::size_t> write;
    alignas(LINE) std::atomic<std::size_t> read;
    alignas(LINE) char end[LINE];
};

#if HAVE_BOOST
// Their capacity is a constant here: only then do they live in one piece without pointers.
template <class T> class BoostSpsc {
  public:
    void create(std::size_t) { new (this) BoostSpsc; }
    bool try_push(const T &item) { return queue.push(item); }
    bool try_pop(T &item) { return queue.pop(item); }

  private:
    boost::lockfree::spsc_queue<T, boost::lockfree::capacity<16384>> queue;
};

template <class T> class BoostMpmc {
  public:
    void create(std::size_t) { new (this) BoostMpmc; }
    bool try_push(const T &item) { return queue.push(item); }
    bool try_pop(T &item) { return queue.pop(item); }

  private:
    boost::lockfree::queue<T, boost::lockfree::capacity<16384>> queue;
};
#endif

template <class Q> static Q &at(std::int64_t address) { return *reinterpret_cast<Q *>(address); }

template <class Q, class T> static void produce(Q &queue, std::int64_t count) {
    T item{};
    int looked = 0;
    for (std::int64_t n = 0; n < count; n++) {
        item.value = static_cast<std::uint64_t>(n);
        whole(item);
        while (!queue.try_push(item))
            patient(looked);
    }
}

template <class Q, class T> static std::int64_t consume(Q &queue, std::int64_t count) {
    T item;
    std::uint64_t sum = 0;
    int looked = 0;
    for (std::int64_t n = 0; n < count; n++) {
        while (!queue.try_pop(item))
            patient(looked);
        whole(item);
        sum += item.value;
    }
    return static_cast<std::int64_t>(sum);
}

template <class Q, class T> static void ping(Q &there, Q &back, std::int64_t count) {
    T item{};
    for (std::int64_t n = 0; n < count; n++) {
        while (!there.try_push(item))
            relax();
        while (!back.try_pop(item))
            relax();
    }
}

template <class Q, class T> static void pong(Q &there, Q &back, std::int64_t count) {
    T item;
    for (std::int64_t n = 0; n < count; n++) {
        while (!there.try_pop(item))
            relax();
        while (!back.try_push(item))
            relax();
    }
}

#define PEER(NAME, QUEUE, ITEM)                                                                                        \
    extern "C" std::int64_t NAME##_bytes(std::int64_t slots) {                                                         \
        return static_cast<std::int64_t>(sizeof(QUEUE<ITEM>)) + (slots + 1) * 2 * sizeof(ITEM);                        \
    }                                                                                                                  \
    extern "C" void NAME##_create(std::int64_t a, std::int64_t slots) { at<QUEUE<ITEM>>(a).create(slots); }            \
    extern "C" void NAME##_produce(std::int64_t a, std::int64_t n) { produce<QUEUE<ITEM>, ITEM>(at<QUEUE<ITEM>>(a), n); } \
    extern "C" std::int64_t NAME##_consume(std::int64_t a, std::int64_t n) {                                           \
        return consume<QUEUE<ITEM>, ITEM>(at<QUEUE<ITEM>>(a), n);                                                      \
    }                                                                                                                  \
    extern "C" void NAME##_ping(std::int64_t a, std::int64_t b, std::int64_t n) {                                      \
        ping<QUEUE<ITEM>, ITEM>(at<QUEUE<ITEM>>(a), at<QUEUE<ITEM>>(b), n);                                            \
    }                                                                                                                  \
    extern "C" void NAME##_pong(std::int64_t a, std::int64_t b, std::int64_t n) {                                      \
        pong<QUEUE<ITEM>, ITEM>(at<QUEUE<ITEM>>(a), at<QUEUE<ITEM>>(b), n);                                            \
    }

PEER(spsc8, Spsc, Item8)
PEER(spsc64, Spsc, Item64)
PEER(vyukov8, Vyukov, Item8)
#if HAVE_BOOST
PEER(boost_spsc8, BoostSpsc, Item8)
PEER(boost_mpmc8, BoostMpmc, Item8)
#endif
