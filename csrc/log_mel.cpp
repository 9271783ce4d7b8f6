// Waveform -> log-mel: the frames of all clips are one list, cut into blocks of LANES and shared among threads.
#include "log_mel.h"

#include "blocks.h"

namespace muomni {

namespace {

constexpr int64_t CACHED_FRAMES = 2048;  // of a clip that waits in the cache for its maximum

// Whisper's scale, clip by clip: a clip's maximum is known when its last frame is.
template <typename Sample>
int64_t whisper_clips(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int64_t n_workers, int n_threads,
                      float* out) {
    const int64_t n_mels = plan.tables.view.n_mels, longest = longest_clip(ragged);
    // A long result goes past the cache once it is scaled.
    const bool stream = longest <= CACHED_FRAMES && streams(out, n_mels, ragged.cu_frames[ragged.n_clips]);
    const std::vector<int64_t> shares = share_clips(ragged, n_workers);
    std::vector<std::unique_ptr<float[]>> waiting;
    for (int64_t w = 0; w < n_workers; ++w)
        waiting.emplace_back(stream ? new float[static_cast<size_t>(longest * n_mels)] : nullptr);
    return run_workers(n_workers, n_threads, plan, ragged, [&](Worker& worker, int64_t w) {
        for (int64_t clip = shares[static_cast<size_t>(w)]; clip < shares[static_cast<size_t>(w) + 1]; ++clip) {
            const int64_t first = ragged.cu_frames[clip], last = ragged.cu_frames[clip + 1];
            float* rows = stream ? waiting[static_cast<size_t>(w)].get() : out + first * n_mels;
            const float largest = run_clip(plan, waveform, ragged, clip, worker, rows);
            plan.level.clamp_whisper(largest - WHISPER_RANGE, rows, (last - first) * n_mels, stream, out + first * n_mels);
        }
    });
}

// The same for few clips and several threads: frames are shared, then scaled when all maxima are known.
template <typename Sample>
int64_t whisper_frames(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int64_t n_workers, int n_threads,
                      float* out) {
    const int64_t total = ragged.cu_frames[ragged.n_clips], n_mels = plan.tables.view.n_mels;
    const auto first_of = [=](int64_t w) { return std::min((total / LANES + 1) * w / n_workers * LANES, total); };
    const size_t n_clips = static_cast<size_t>(ragged.n_clips);
    std::vector<std::vector<float>> largest(static_cast<size_t>(n_workers), std::vector<float>(n_clips, -3.4e38f));
    const int64_t bad_clip = run_workers(n_workers, n_threads, plan, ragged, [&](Worker& worker, int64_t w) {
        std::vector<float>& own = largest[static_cast<size_t>(w)];
        run_blocks(
            plan, waveform, ragged, first_of(w), first_of(w + 1), false, worker,
            [=](int64_t frame, int64_t) { return out + frame * n_mels; },
            [&](int64_t begin, int64_t end) {
                for (int64_t frame = begin; frame < end; ++frame) {
                    float& most = own[static_cast<size_t>(clip_of(ragged.cu_frames, ragged.n_clips, frame))];
                    most = std::max(most, worker.largest[frame - begin]);
                }
            });
    });
    if (bad_clip >= 0) return bad_clip;
    share(n_workers, n_threads, [&](int64_t w) {
        for (size_t clip = 0; clip < n_clips; ++clip) {
            const int64_t first = std::max(first_of(w), ragged.cu_frames[clip]);
            const int64_t last = std::min(first_of(w + 1), ragged.cu_frames[clip + 1]);
            if (first >= last) continue;
            float most = largest[0][clip];
            for (const std::vector<float>& other : largest) most = std::max(most, other[clip]);
            float* rows = out + first * n_mels;
            plan.level.clamp_whisper(most - WHISPER_RANGE, rows, (last - first) * n_mels, false, rows);
        }
    });
    return -1;
}

}  // namespace

template <typename Sample>
int64_t log_mel(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int n_threads, float* out) {
    const int64_t total = ragged.cu_frames[ragged.n_clips], n_mels = plan.tables.view.n_mels;
    const int64_t blocks = (total + LANES - 1) / LANES, n_workers = part_count(n_threads, total, blocks);
    if (plan.log == Log::whisper)
        return n_workers == 1 || longest_clip(ragged) * n_workers <= total
                   ? whisper_clips(plan, waveform, ragged, n_workers, n_threads, out)
                   : whisper_frames(plan, waveform, ragged, n_workers, n_threads, out);
    const bool stream = streams(out, n_mels, total);
    return run_workers(n_workers, n_threads, plan, ragged, [&](Worker& worker, int64_t w) {
        const int64_t first = blocks * w / n_workers * LANES, last = std::min(blocks * (w + 1) / n_workers * LANES, total);
        run_blocks(
            plan, waveform, ragged, first, last, stream, worker,
            [=](int64_t frame, int64_t) { return out + frame * n_mels; }, [](int64_t, int64_t) {});
    });
}

template int64_t log_mel<float>(const MelPlan&, const float*, const Ragged&, int, float*);
template int64_t log_mel<int16_t>(const MelPlan&, const int16_t*, const Ragged&, int, float*);

}  // namespace muomni
