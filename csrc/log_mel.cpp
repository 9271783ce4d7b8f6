// Waveform -> log-mel: the frames of all clips are one list, cut into blocks of LANES and shared among threads.
#include "log_mel.h"

#include "blocks.h"

namespace muomni {

template <typename Sample>
int64_t log_mel(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int n_threads, float* out) {
    const int64_t total = ragged.cu_frames[ragged.n_clips], n_mels = plan.tables.view.n_mels;
    const int64_t blocks = (total + LANES - 1) / LANES;
    const int64_t n_workers = std::max<int64_t>(1, std::min<int64_t>(n_threads, blocks));
    std::vector<Worker> workers(static_cast<size_t>(n_workers), Worker(plan.tables));
    const int64_t bad_clip = run_workers(workers, ragged, [&](Worker& worker, int64_t w) {
        const int64_t first = blocks * w / n_workers * LANES, last = blocks * (w + 1) / n_workers * LANES;
        run_blocks(
            plan, waveform, ragged, first, std::min(last, total), worker,
            [=](int64_t frame, int64_t) { return out + frame * n_mels; }, [](int64_t, int64_t) {});
    });
    if (bad_clip >= 0) return bad_clip;
    if (plan.log == Log::whisper)
        for (int64_t clip = 0; clip < ragged.n_clips; ++clip)
            whisper_scale(out + ragged.cu_frames[clip] * n_mels, out + ragged.cu_frames[clip + 1] * n_mels);
    return -1;
}

template int64_t log_mel<float>(const MelPlan&, const float*, const Ragged&, int, float*);
template int64_t log_mel<int16_t>(const MelPlan&, const int16_t*, const Ragged&, int, float*);

}  // namespace muomni
