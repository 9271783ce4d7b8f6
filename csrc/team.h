// Threads that share many short phases of one piece of work: waking a thread takes longer than a phase, so they spin.
#pragma once

#include <cstdint>
#include <functional>

namespace muomni {

// Phases of parts. Whoever leads does them in order; helpers take parts of the phase that is open, as far as they come.
class Team {
public:
    virtual ~Team() = default;
    // work(part) for each part from 0 to n_parts - 1 by the team; returns when all are done. work must not throw.
    virtual void each(int64_t n_parts, const std::function<void(int64_t)>& work) = 0;
};

// lead(team), by one of at most n_threads threads while the others help. A thread that never comes is not waited for.
void with_team(int64_t n_threads, const std::function<void(Team&)>& lead);

}  // namespace muomni
