// A pool of threads behind one mutex: parts of the work are handed out one by one, and there are few.
#include "pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define MUOMNI_FORKS
#endif

namespace muomni {

int64_t processors() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
    return std::max<int64_t>(1, std::thread::hardware_concurrency());
}

namespace {

class Pool {
public:
    // False when another call uses the pool.
    bool run(int64_t n_parts, int64_t n_threads, const std::function<void(int64_t)>& work) {
        std::unique_lock<std::mutex> only(busy_, std::try_to_lock);
        if (!only) return false;
        const int64_t n_helpers = std::min({n_parts, n_threads, processors()}) - 1;
        grow(n_helpers);
        std::unique_lock<std::mutex> lock(mutex_);
        n_helpers_ = n_helpers;
        work_ = &work;
        n_parts_ = n_unfinished_ = n_parts;
        next_ = 0;
        wake_.notify_all();
        take(lock);
        done_.wait(lock, [&] { return n_unfinished_ == 0; });
        return true;
    }

private:
    void grow(int64_t n_threads) {
        try {
            for (; n_threads_ < n_threads; ++n_threads_) std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {
            // The threads there are, and the caller, do the work.
        }
    }

    // Does parts until none is left to begin.
    void take(std::unique_lock<std::mutex>& lock) {
        while (next_ < n_parts_) {
            const int64_t part = next_++;
            lock.unlock();
            (*work_)(part);
            lock.lock();
            if (--n_unfinished_ == 0) done_.notify_one();
        }
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return next_ < n_parts_ && n_helpers_ > 0; });
            --n_helpers_;
            take(lock);
        }
    }

    std::mutex busy_;   // held by the call that uses the pool
    std::mutex mutex_;  // guards all below but n_threads_
    std::condition_variable wake_, done_;
    const std::function<void(int64_t)>* work_ = nullptr;
    int64_t next_ = 0, n_parts_ = 0, n_unfinished_ = 0, n_helpers_ = 0, n_threads_ = 0;
};

// Never destroyed: its threads sleep in it until the process ends.
std::atomic<Pool*> current{nullptr};

Pool& instance() {
    Pool* pool = current.load();
    if (pool != nullptr) return *pool;
    Pool* made = new Pool;
    if (current.compare_exchange_strong(pool, made)) return *made;
    delete made;
    return *pool;
}

#if defined(MUOMNI_FORKS)
// Only the thread that forked lives on in a child, and the locks may be held for ever: it starts anew.
const int on_fork = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
#endif

}  // namespace

void share(int64_t n_parts, int64_t n_threads, const std::function<void(int64_t)>& work) {
    if (n_parts > 1 && n_threads > 1 && instance().run(n_parts, n_threads, work)) return;
    for (int64_t part = 0; part < n_parts; ++part) work(part);
}

}  // namespace muomni
