// Waveform -> log-mel: the frames of all clips are one list, cut into blocks of LANES and shared among threads.
#include "log_mel.h"

#include <algorithm>
#include <thread>
#include <type_traits>
#include <vector>

namespace muomni {

namespace {

float as_float(float sample) { return sample; }
float as_float(int16_t sample) { return static_cast<float>(sample) * (1.0f / 32768.0f); }

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

template <typename Sample>
void run_blocks(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int64_t first, int64_t last,
                Worker& worker, float* out) {
    const int64_t n_fft = plan.tables.view.n_fft, n_mels = plan.tables.view.n_mels, total = ragged.cu_frames[ragged.n_clips];
    const float unit = plan.log == Log::whisper ? 0.434294481903251828f : 1.0f;  // ln -> log10
    const float* rows[LANES];
    float* out_rows[LANES];
    for (int64_t block = first; block < last; ++block) {
        const int64_t begin = block * LANES;
        int64_t clip = std::upper_bound(ragged.cu_frames, ragged.cu_frames + ragged.n_clips + 1, begin) - ragged.cu_frames - 1;
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t frame = begin + lane;
            if (frame >= total) {  // the last block's spare lanes repeat its first frame
                rows[lane] = rows[0];
                out_rows[lane] = worker.unused.data();
                continue;
            }
            while (frame >= ragged.cu_frames[clip + 1]) ++clip;
            const Sample* samples = waveform + ragged.cu_samples[clip];
            const int64_t n_samples = ragged.cu_samples[clip + 1] - ragged.cu_samples[clip];
            const int64_t start = (frame - ragged.cu_frames[clip]) * plan.hop_length - plan.lead();
            out_rows[lane] = out + frame * n_mels;
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
    }
}

// Whisper's scale: nothing more than 8 below the clip's maximum, then (x + 4) / 4.
void whisper_scale(const MelPlan& plan, const Ragged& ragged, float* out) {
    for (int64_t clip = 0; clip < ragged.n_clips; ++clip) {
        float* begin = out + ragged.cu_frames[clip] * plan.tables.view.n_mels;
        float* end = out + ragged.cu_frames[clip + 1] * plan.tables.view.n_mels;
        if (begin == end) continue;
        const float lowest = *std::max_element(begin, end) - 8.0f;
        for (float* x = begin; x != end; ++x) *x = (std::max(*x, lowest) + 4.0f) * 0.25f;
    }
}

// Joins on every way out: a thread that cannot be started must not end the process.
struct Threads {
    ~Threads() {
        for (std::thread& thread : running) thread.join();
    }
    std::vector<std::thread> running;
};

}  // namespace

template <typename Sample>
int64_t log_mel(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int n_threads, float* out) {
    const int64_t total = ragged.cu_frames[ragged.n_clips];
    const int64_t blocks = (total + LANES - 1) / LANES;
    const int64_t n_workers = std::max<int64_t>(1, std::min<int64_t>(n_threads, blocks));
    std::vector<Worker> workers(static_cast<size_t>(n_workers), Worker(plan.tables));
    const auto work = [&](int64_t w) {
        run_blocks(plan, waveform, ragged, blocks * w / n_workers, blocks * (w + 1) / n_workers,
                   workers[static_cast<size_t>(w)], out);
    };
    {
        Threads threads;
        threads.running.reserve(static_cast<size_t>(n_workers));
        for (int64_t w = 1; w < n_workers; ++w) threads.running.emplace_back(work, w);
        work(0);
    }
    for (const Worker& worker : workers)
        if (worker.first_bad >= 0)
            return std::upper_bound(ragged.cu_frames, ragged.cu_frames + ragged.n_clips + 1, worker.first_bad) -
                   ragged.cu_frames - 1;
    if (plan.log == Log::whisper) whisper_scale(plan, ragged, out);
    return -1;
}

template int64_t log_mel<float>(const MelPlan&, const float*, const Ragged&, int, float*);
template int64_t log_mel<int16_t>(const MelPlan&, const int16_t*, const Ragged&, int, float*);

}  // namespace muomni
