// The threads of this process that share the front end's work, asleep between calls.
#pragma once

#include <cstdint>
#include <functional>

namespace muomni {

// work(part) for each part from 0 to n_parts - 1, in any order, by the caller and at most n_threads - 1 threads of the
// pool; returns when all are done. There are never more threads than processors. A call that finds the pool at work for another, or no
// memory for threads, does all parts itself: threads of several callers never crowd each other. A child of fork has a
// pool of its own. work must not throw.
void share(int64_t n_parts, int64_t n_threads, const std::function<void(int64_t)>& work);

// How many processors this process may use.
int64_t processors();

}  // namespace muomni
