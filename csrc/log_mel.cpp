// Waveform -> log-mel: the frames of all clips are one list, cut into blocks of LANES and shared among threads.
#include "log_mel.h"

#include "blocks.h"

namespace muomni {

namespace {

// Frames of one clip that one worker has, and their largest value.
struct Piece {
    int64_t clip, begin, end;
    float largest;
};

// Whisper's scale: nothing more than 8 below a clip's maximum, then (x + 4) / 4. A clip that one worker has whole is
// scaled while it is in the cache; the pieces of the others wait for each other.
class WhisperScale {
public:
    WhisperScale(const MelPlan& plan, const Ragged& ragged, float* out)
        : plan_(plan), ragged_(ragged), out_(out), width_(plan.tables.view.n_mels) {}

    // The worker's frames [first, last) are written up to `end`; at_ is where the last call stopped.
    void advance(int64_t first, int64_t last, int64_t end) {
        if (at_ < first) at_ = first;
        while (at_ < end) {
            const int64_t clip = clip_of(ragged_.cu_frames, ragged_.n_clips, at_);
            const int64_t stop = std::min(last, ragged_.cu_frames[clip + 1]);
            if (stop > end) return;
            const Piece piece{clip, at_, stop, plan_.level.largest(out_ + at_ * width_, (stop - at_) * width_)};
            if (at_ == ragged_.cu_frames[clip] && stop == ragged_.cu_frames[clip + 1])
                scale(piece, piece.largest);
            else
                pieces.push_back(piece);
            at_ = stop;
        }
    }

    void scale(const Piece& piece, float maximum) const {
        plan_.level.clamp_whisper(maximum - 8.0f, (piece.end - piece.begin) * width_, out_ + piece.begin * width_);
    }

    std::vector<Piece> pieces;

private:
    const MelPlan& plan_;
    const Ragged& ragged_;
    float* const out_;
    const int64_t width_;
    int64_t at_ = 0;
};

void scale_pieces(const std::vector<WhisperScale>& scales) {
    share(static_cast<int64_t>(scales.size()), [&](int64_t w) {
        const WhisperScale& own = scales[static_cast<size_t>(w)];
        for (const Piece& piece : own.pieces) {
            float maximum = piece.largest;
            for (const WhisperScale& other : scales)
                for (const Piece& part : other.pieces)
                    if (part.clip == piece.clip) maximum = std::max(maximum, part.largest);
            own.scale(piece, maximum);
        }
    });
}

}  // namespace

template <typename Sample>
int64_t log_mel(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int n_threads, float* out) {
    const int64_t total = ragged.cu_frames[ragged.n_clips], n_mels = plan.tables.view.n_mels;
    const int64_t blocks = (total + LANES - 1) / LANES, n_workers = worker_count(n_threads, total, blocks);
    const bool whisper = plan.log == Log::whisper, stream = !whisper && streams(out, n_mels, total);
    std::vector<Worker> workers = make_workers(n_workers, plan.tables);
    std::vector<WhisperScale> scales;
    for (int64_t w = 0; w < n_workers; ++w) {
        scales.emplace_back(plan, ragged, out);
        scales.back().pieces.reserve(2);  // only the clips at both ends are shared with other workers
    }
    const int64_t bad_clip = run_workers(workers, plan, ragged, [&](Worker& worker, int64_t w) {
        const int64_t first = blocks * w / n_workers * LANES, last = std::min(blocks * (w + 1) / n_workers * LANES, total);
        WhisperScale& scale = scales[static_cast<size_t>(w)];
        run_blocks(
            plan, waveform, ragged, first, last, stream, worker,
            [=](int64_t frame, int64_t) { return out + frame * n_mels; },
            [&](int64_t, int64_t end) {
                if (whisper) scale.advance(first, last, end);
            });
    });
    if (bad_clip >= 0) return bad_clip;
    if (whisper) scale_pieces(scales);
    return -1;
}

template int64_t log_mel<float>(const MelPlan&, const float*, const Ragged&, int, float*);
template int64_t log_mel<int16_t>(const MelPlan&, const int16_t*, const Ragged&, int, float*);

}  // namespace muomni
