// A team's parts are handed out by one number that only changes as a whole: which phase, how many parts, which is next.
#include "team.h"

#include <atomic>
#include <thread>

#include "pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace muomni {

namespace {

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

// A thread that waits longer gives its processor away.
constexpr int SPINS = 1 << 12;

class Spinning final : public Team {
public:
    explicit Spinning(bool alone) : alone_(alone) {}

    void each(int64_t n_parts, const std::function<void(int64_t)>& work) override {
        if (alone_ || n_parts < 2 || n_parts > MOST) {
            for (int64_t part = 0; part < n_parts; ++part) work(part);
            return;
        }
        work_ = &work;
        n_done_.store(0, std::memory_order_relaxed);
        ticket_.store(++phase_ << 2 * BITS | static_cast<uint64_t>(n_parts) << BITS, std::memory_order_release);
        take();
        for (int spins = 0; n_done_.load(std::memory_order_acquire) < n_parts; ++spins) wait(spins);
    }

    void help() {
        for (int spins = 0; !over_.load(std::memory_order_acquire); ++spins) {
            if (take())
                spins = 0;
            else
                wait(spins);
        }
    }

    void end() { over_.store(true, std::memory_order_release); }

private:
    // Of a number of parts.
    static constexpr int BITS = 20;
    static constexpr int64_t MOST = (int64_t{1} << BITS) - 1;

    static void wait(int spins) {
        if (spins < SPINS)
            pause();
        else
            std::this_thread::yield();
    }

    // Parts of the open phase, until none is left to begin; whether there was one. A part that was taken keeps its phase
    // open, so what belongs to the phase is read behind the exchange.
    bool take() {
        bool any = false;
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        while ((ticket & MOST) < (ticket >> BITS & MOST)) {
            if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
            any = true;
            (*work_)(static_cast<int64_t>(ticket & MOST));
            n_done_.fetch_add(1, std::memory_order_acq_rel);
            ticket = ticket_.load(std::memory_order_acquire);
        }
        return any;
    }

    const bool alone_;
    const std::function<void(int64_t)>* work_ = nullptr;
    uint64_t phase_ = 0;
    std::atomic<uint64_t> ticket_{0};
    std::atomic<int64_t> n_done_{0};
    std::atomic<bool> over_{false};
};

}  // namespace

void with_team(int64_t n_threads, const std::function<void(Team&)>& lead) {
    if (n_threads < 2) {
        Spinning team(true);
        lead(team);
        return;
    }
    Spinning team(false);
    std::atomic<bool> led{false};
    share(n_threads, n_threads, [&](int64_t) {
        if (led.exchange(true)) {
            team.help();
        } else {
            lead(team);
            team.end();
        }
    });
}

}  // namespace muomni
