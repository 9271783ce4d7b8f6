// Blocks of LANES frames of a ragged batch, taken from any clips, and the threads that share them.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "log_mel.h"
#include "pool.h"

namespace muomni {

constexpr float WHISPER_RANGE = 8.0f;  // of log10: nothing is more below a clip's maximum

inline float as_float(float sample) { return sample; }
inline float as_float(int16_t sample) { return static_cast<float>(sample) * (1.0f / 32768.0f); }

inline void widen(const SimdLevel&, const float* from, int64_t n, float* into) { std::copy(from, from + n, into); }
inline void widen(const SimdLevel& level, const int16_t* from, int64_t n, float* into) { level.widen(from, n, into); }

// What one thread writes to. The memory is kept for the next call.
struct Worker {
    // Ready for frames of these tables.
    void prepare(const MelTables& tables) {
        const int64_t n_samples = static_cast<int64_t>(tables.view.n_fft) * LANES;
        if (scratch_lanes_ < tables.scratch_lanes()) {
            scratch.reset(new Lane[static_cast<size_t>(tables.scratch_lanes())]);
            scratch_lanes_ = tables.scratch_lanes();
        }
        if (n_samples_ < n_samples) {
            samples.reset(new float[static_cast<size_t>(n_samples)]);
            n_samples_ = n_samples;
        }
        if (n_unused_ < tables.view.n_mels) {
            unused.reset(new float[static_cast<size_t>(tables.view.n_mels)]);
            n_unused_ = tables.view.n_mels;
        }
        first_bad = -1;
    }

    // met: a bit for every lane that is not finite; the first n lanes are the frames from begin.
    void note(uint32_t met, int64_t begin, int64_t n) {
        const uint32_t bad = met & ((1u << n) - 1u);
        if (bad == 0 || first_bad >= 0) return;
        first_bad = begin;
        for (uint32_t rest = bad; !(rest & 1u); rest >>= 1) ++first_bad;
    }

    std::unique_ptr<Lane[]> scratch;
    std::unique_ptr<float[]> samples;  // of frames that do not lie in the waveform as they are
    std::unique_ptr<float[]> unused;   // where lanes without a frame write
    float largest[LANES];              // of each of a block's frames, for Whisper's scale
    int64_t first_bad = -1;            // the first frame that is not finite

private:
    int64_t scratch_lanes_ = 0, n_samples_ = 0, n_unused_ = 0;
};

// The n samples from `start` of a clip with its padding.
template <typename Sample>
void copy_samples(const MelPlan& plan, const Sample* clip, int64_t n_samples, int64_t start, int64_t n, float* into) {
    const int64_t begin = std::clamp<int64_t>(-start, 0, n), end = std::clamp<int64_t>(n_samples - start, begin, n);
    if (begin < end) widen(plan.level, clip + start + begin, end - begin, into + begin);
    if (plan.padding == Padding::causal) {
        std::fill(into, into + begin, 0.0f);
        std::fill(into + end, into + n, 0.0f);
        return;
    }
    for (int64_t i = 0; i < begin; ++i) into[i] = as_float(clip[-(start + i)]);
    for (int64_t i = end; i < n; ++i) into[i] = as_float(clip[2 * (n_samples - 1) - (start + i)]);
}

// The clip that holds an item of the ragged list whose offsets are `cu`.
inline int64_t clip_of(const int64_t* cu, int64_t n_clips, int64_t item) {
    return std::upper_bound(cu, cu + n_clips + 1, item) - cu - 1;
}

// The samples of the frames [begin, begin + n) of one clip; spare lanes hold zeros.
template <typename Sample>
void place_clip(const MelPlan& plan, const Sample* clip, int64_t n_samples, int64_t frame, int64_t n, Worker& worker,
                Block& block) {
    const int64_t n_fft = plan.tables.view.n_fft, hop = plan.hop_length;
    const int64_t start = frame * hop - plan.lead(), length = (n - 1) * hop + n_fft, all = (LANES - 1) * hop + n_fft;
    block.spaced = n_fft == 400 && hop == 160;
    const float* first = worker.samples.get();
    if constexpr (std::is_same_v<Sample, float>)
        if (start >= 0 && start + all <= n_samples) first = clip + start;
    if (first == worker.samples.get()) {
        // A mirrored clip ends half a frame behind its samples: no further than its own frames reach.
        copy_samples(plan, clip, n_samples, start, length, worker.samples.get());
        std::fill(worker.samples.get() + length, worker.samples.get() + all, 0.0f);
    } else if (block.spaced && start + all + Block::FETCHED <= n_samples) {
        block.next = first + all;
    }
    for (int lane = 0; lane < LANES; ++lane) block.rows[lane] = first + lane * hop;
}

// The samples of the frames [begin, begin + n), of several clips; spare lanes repeat the first.
template <typename Sample>
void place_mixed(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int64_t clip, int64_t begin,
                 int64_t n, Worker& worker, Block& block) {
    const int64_t n_fft = plan.tables.view.n_fft;
    for (int lane = 0; lane < LANES; ++lane) {
        const int64_t frame = begin + lane;
        block.rows[lane] = block.rows[0];
        if (lane >= n) continue;
        while (frame >= ragged.cu_frames[clip + 1]) ++clip;
        const Sample* samples = waveform + ragged.cu_samples[clip];
        const int64_t n_samples = ragged.cu_samples[clip + 1] - ragged.cu_samples[clip];
        const int64_t start = (frame - ragged.cu_frames[clip]) * plan.hop_length - plan.lead();
        if constexpr (std::is_same_v<Sample, float>) {
            if (start >= 0 && start + n_fft <= n_samples) {
                block.rows[lane] = samples + start;
                continue;
            }
        }
        float* row = worker.samples.get() + lane * n_fft;
        copy_samples(plan, samples, n_samples, start, n_fft, row);
        block.rows[lane] = row;
    }
}

// The frames [first, last) of all clips, LANES at a time: frame f is written to place(f, first of its block), then
// done(first of the block, behind its last) is called. stream: the places are whole cache lines nobody reads soon.
template <typename Sample, typename Place, typename Done>
void run_blocks(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int64_t first, int64_t last,
                bool stream, Worker& worker, Place place, Done done) {
    const float unit = plan.log == Log::whisper ? 0.434294481903251828f : 1.0f;  // ln -> log10
    for (int64_t begin = first, clip = -1; begin < last; begin += LANES) {
        const int64_t n = std::min<int64_t>(LANES, last - begin);
        if (clip < 0 || begin >= ragged.cu_frames[clip + 1]) clip = clip_of(ragged.cu_frames, ragged.n_clips, begin);
        Block block{};
        if (begin + n <= ragged.cu_frames[clip + 1])
            place_clip(plan, waveform + ragged.cu_samples[clip], ragged.cu_samples[clip + 1] - ragged.cu_samples[clip],
                       begin - ragged.cu_frames[clip], n, worker, block);
        else
            place_mixed(plan, waveform, ragged, clip, begin, n, worker, block);
        for (int lane = 0; lane < LANES; ++lane)
            block.out_rows[lane] = lane < n ? place(begin + lane, begin) : worker.unused.get();
        block.stream = stream && n == LANES;
        if (plan.log == Log::whisper) block.largest = worker.largest;
        worker.note(plan.level.transform(plan.tables.view, plan.floor, unit, block, worker.scratch.get()), begin, n);
        done(begin, begin + n);
    }
}

// The frames of one clip of Whisper's logarithm, not yet scaled, into `out`; returns their largest value.
template <typename Sample>
float run_clip(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int64_t clip, Worker& worker,
               float* out) {
    const int64_t first = ragged.cu_frames[clip], n_mels = plan.tables.view.n_mels;
    float largest = -3.4e38f;
    run_blocks(
        plan, waveform, ragged, first, ragged.cu_frames[clip + 1], false, worker,
        [=](int64_t frame, int64_t) { return out + (frame - first) * n_mels; },
        [&](int64_t begin, int64_t end) {
            largest = std::max(largest, *std::max_element(worker.largest, worker.largest + (end - begin)));
        });
    return largest;
}

// Workers' clips: worker w has those from shares[w], about as many frames each.
inline std::vector<int64_t> share_clips(const Ragged& ragged, int64_t n_workers) {
    const int64_t n_frames = ragged.cu_frames[ragged.n_clips];
    std::vector<int64_t> shares;
    for (int64_t w = 0; w < n_workers; ++w)
        shares.push_back(w == 0 ? 0 : clip_of(ragged.cu_frames, ragged.n_clips, n_frames * w / n_workers));
    shares.push_back(ragged.n_clips);
    return shares;
}

inline int64_t longest_clip(const Ragged& ragged) {
    int64_t longest = 0;
    for (int64_t clip = 0; clip < ragged.n_clips; ++clip)
        longest = std::max(longest, ragged.cu_frames[clip + 1] - ragged.cu_frames[clip]);
    return longest;
}

// Whether rows of `width` values go past the cache: whole lines, and more than it holds for their reader.
template <typename Out>
bool streams(const Out* out, int64_t width, int64_t n_rows) {
    constexpr int64_t LINE = 64, MUCH = 16 << 20, SIZE = sizeof(Out);
    return width * SIZE % LINE == 0 && width * SIZE * n_rows >= MUCH && reinterpret_cast<uintptr_t>(out) % LINE == 0;
}

constexpr int64_t PARTS_PER_THREAD = 4;

// How many parts a call is cut into: one, or some for each thread, so that one that wakes late does fewer; each has 128
// frames at least.
inline int64_t part_count(int n_threads, int64_t n_frames, int64_t most, int64_t per_thread = PARTS_PER_THREAD) {
    constexpr int64_t LEAST_FRAMES = 128;
    if (n_threads == 1) return 1;
    const int64_t n_running = std::min<int64_t>(n_threads, processors());
    return std::max<int64_t>(1, std::min({per_thread * n_running, n_frames / LEAST_FRAMES, most}));
}

// The calling thread's workers, n at least. Fresh pages cost a short clip as much as its transform: they are kept.
inline std::vector<Worker>& kept_workers(int64_t n) {
    thread_local std::vector<Worker> workers;
    if (static_cast<int64_t>(workers.size()) < n) workers.resize(static_cast<size_t>(n));
    return workers;
}

// work(worker, its index) for n workers, a part each, shared among threads. Returns the clip of the first frame that is not finite,
// else -1.
template <typename Work>
int64_t run_workers(int64_t n, int n_threads, const MelPlan& plan, const Ragged& ragged, Work work) {
    std::vector<Worker>& own = kept_workers(n);  // the caller's, whichever thread works
    for (int64_t w = 0; w < n; ++w) own[static_cast<size_t>(w)].prepare(plan.tables);
    share(n, n_threads, [&](int64_t w) {
        work(own[static_cast<size_t>(w)], w);
        plan.level.end_streams();
    });
    for (int64_t w = 0; w < n; ++w)
        if (own[static_cast<size_t>(w)].first_bad >= 0)
            return clip_of(ragged.cu_frames, ragged.n_clips, own[static_cast<size_t>(w)].first_bad);
    return -1;
}

}  // namespace muomni
