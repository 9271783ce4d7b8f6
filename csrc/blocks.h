// Blocks of LANES frames of a ragged batch, taken from any clips, and the threads that share them.
#pragma once

#include <algorithm>
#include <thread>
#include <type_traits>
#include <vector>

#include "log_mel.h"

namespace muomni {

inline float as_float(float sample) { return sample; }
inline float as_float(int16_t sample) { return static_cast<float>(sample) * (1.0f / 32768.0f); }

// What one thread writes to.
struct Worker {
    explicit Worker(const MelTables& tables)
        : scratch(static_cast<size_t>(tables.scratch_lanes())),
          rows(static_cast<size_t>(tables.view.n_fft) * LANES),
          unused(static_cast<size_t>(tables.view.n_mels)) {}
    std::vector<Lane> scratch;
    std::vector<float> rows;    // (LANES, n_fft) frames that do not lie in the waveform as they are
    std::vector<float> unused;  // where lanes without a frame write
    int64_t first_bad = -1;     // the first frame that is not finite
};

// The n_fft samples from `start` of a clip with its padding.
template <typename Sample>
void copy_frame(const MelPlan& plan, const Sample* clip, int64_t n_samples, int64_t start, float* row) {
    const int64_t n_fft = plan.tables.view.n_fft;
    const int64_t begin = std::clamp<int64_t>(-start, 0, n_fft), end = std::clamp<int64_t>(n_samples - start, begin, n_fft);
    for (int64_t n = begin; n < end; ++n) row[n] = as_float(clip[start + n]);
    if (plan.padding == Padding::causal) {
        std::fill(row, row + begin, 0.0f);
        std::fill(row + end, row + n_fft, 0.0f);
        return;
    }
    for (int64_t n = 0; n < begin; ++n) row[n] = as_float(clip[-(start + n)]);
    for (int64_t n = end; n < n_fft; ++n) row[n] = as_float(clip[2 * (n_samples - 1) - (start + n)]);
}

// The clip that holds an item of the ragged list whose offsets are `cu`.
inline int64_t clip_of(const int64_t* cu, int64_t n_clips, int64_t item) {
    return std::upper_bound(cu, cu + n_clips + 1, item) - cu - 1;
}

// The frames [first, last) of all clips, LANES at a time: frame f is written to place(f, first of its block), then
// done(first of the block, behind its last) is called.
template <typename Sample, typename Place, typename Done>
void run_blocks(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int64_t first, int64_t last,
                Worker& worker, Place place, Done done) {
    const int64_t n_fft = plan.tables.view.n_fft;
    const float unit = plan.log == Log::whisper ? 0.434294481903251828f : 1.0f;  // ln -> log10
    const float* rows[LANES];
    float* out_rows[LANES];
    for (int64_t begin = first; begin < last; begin += LANES) {
        int64_t clip = clip_of(ragged.cu_frames, ragged.n_clips, begin);
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t frame = begin + lane;
            if (frame >= last) {  // the last block's spare lanes repeat its first frame
                rows[lane] = rows[0];
                out_rows[lane] = worker.unused.data();
                continue;
            }
            while (frame >= ragged.cu_frames[clip + 1]) ++clip;
            const Sample* samples = waveform + ragged.cu_samples[clip];
            const int64_t n_samples = ragged.cu_samples[clip + 1] - ragged.cu_samples[clip];
            const int64_t start = (frame - ragged.cu_frames[clip]) * plan.hop_length - plan.lead();
            out_rows[lane] = place(frame, begin);
            if constexpr (std::is_same_v<Sample, float>) {
                if (start >= 0 && start + n_fft <= n_samples) {
                    rows[lane] = samples + start;
                    continue;
                }
            }
            float* row = worker.rows.data() + lane * n_fft;
            copy_frame(plan, samples, n_samples, start, row);
            rows[lane] = row;
        }
        const uint32_t bad = plan.transform(plan.tables.view, plan.floor, unit, rows, out_rows, worker.scratch.data());
        if (bad != 0 && worker.first_bad < 0) {
            int lane = 0;
            while (!(bad >> lane & 1u)) ++lane;
            worker.first_bad = begin + lane;
        }
        done(begin, std::min<int64_t>(begin + LANES, last));
    }
}

// Whisper's scale of one clip's values: nothing more than 8 below their maximum, then (x + 4) / 4.
inline void whisper_scale(float* begin, float* end) {
    if (begin == end) return;
    const float lowest = *std::max_element(begin, end) - 8.0f;
    for (float* x = begin; x != end; ++x) *x = (std::max(*x, lowest) + 4.0f) * 0.25f;
}

// Joins on every way out: a thread that cannot be started must not end the process.
struct Threads {
    ~Threads() {
        for (std::thread& thread : running) thread.join();
    }
    std::vector<std::thread> running;
};

// work(worker, its index) for each, on a thread of its own but for the first. Returns the clip of the first frame
// that is not finite, else -1.
template <typename Work>
int64_t run_workers(std::vector<Worker>& workers, const Ragged& ragged, Work work) {
    {
        Threads threads;
        threads.running.reserve(workers.size());
        for (size_t w = 1; w < workers.size(); ++w)
            threads.running.emplace_back([&, w] { work(workers[w], static_cast<int64_t>(w)); });
        work(workers[0], 0);
    }
    for (const Worker& worker : workers)
        if (worker.first_bad >= 0) return clip_of(ragged.cu_frames, ragged.n_clips, worker.first_bad);
    return -1;
}

}  // namespace muomni
