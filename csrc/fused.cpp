// Log-mel and downsampling in one pass: each block of LANES frames is added to its rows while it is in the cache.
#include "fused.h"

#include "blocks.h"

namespace muomni {

namespace {

void convert(const SimdLevel&, const float* from, int64_t n, bool, float* into) { std::copy(from, from + n, into); }
void convert(const SimdLevel& level, const float* from, int64_t n, bool stream, uint16_t* into) {
    level.to_bfloat16(from, n, stream, into);
}

// Takes the frames of whole groups one after another and writes the rows, in the order of additions of `downsample`.
template <typename Out>
class Rows {
public:
    // in_place: a float row of stack is its frames, and they are written there before they are added.
    // stream: rows are whole cache lines that nobody reads soon.
    Rows(const SimdLevel& level, const Groups& groups, Pool pool, bool in_place, bool stream, Out* out)
        : in_place(in_place), stream(stream), level_(level), g_(groups), pool_(pool), out_(out), sum_(static_cast<size_t>(groups.width)) {}

    const bool in_place, stream;

    // The next frame to come, the first of a group.
    void start(int64_t frame) { seek(clip_of(g_.cu_frames, g_.n_clips, frame), frame); }

    // Where a frame of a stacked row lies; frames rise from the one given to start.
    Out* stacked(int64_t frame) {
        while (frame >= g_.cu_frames[place_ + 1]) ++place_;
        return out_ + (g_.cu_rows[place_] * g_.factor + frame - g_.cu_frames[place_]) * g_.width;
    }

    // frames: (last - first, width), following those of the call before.
    void add(const float* frames, int64_t first, int64_t last) {
        for (int64_t frame = first; frame < last; ++frame, frames += g_.width) {
            if (frame == clip_end_) seek(clip_of(g_.cu_frames, g_.n_clips, frame), frame);
            if (pool_ == Pool::stack)
                stack(frames);
            else
                pool(frames);
            if (++count_ == g_.factor || frame + 1 == clip_end_) {
                finish();
                ++row_;
                count_ = 0;
            }
        }
    }

private:
    void seek(int64_t clip, int64_t frame) {
        place_ = clip;
        clip_end_ = g_.cu_frames[clip + 1];
        row_ = g_.cu_rows[clip] + (frame - g_.cu_frames[clip]) / g_.factor;
        count_ = 0;
    }

    void stack(const float* x) {
        if (!in_place) convert(level_, x, g_.width, stream, out_ + (row_ * g_.factor + count_) * g_.width);
    }

    void pool(const float* x) {
        float* y = sum_.data();
        if (count_ == 0)
            std::copy(x, x + g_.width, y);
        else if (pool_ == Pool::mean)
            level_.add(x, g_.width, y);
        else
            for (int64_t c = 0; c < g_.width; ++c) y[c] = x[c] > y[c] ? x[c] : y[c];
    }

    void finish() {
        if (pool_ == Pool::stack) {
            Out* y = out_ + row_ * g_.factor * g_.width;
            std::fill(y + count_ * g_.width, y + g_.factor * g_.width, Out{});
            return;
        }
        if (pool_ == Pool::mean)
            for (float& y : sum_) y /= static_cast<float>(count_);
        convert(level_, sum_.data(), g_.width, false, out_ + row_ * g_.width);
    }

    const SimdLevel& level_;
    const Groups& g_;
    const Pool pool_;
    Out* const out_;
    std::vector<float> sum_;
    int64_t place_ = 0, clip_end_ = 0, row_ = 0, count_ = 0;
};

// The first frame of a row; behind the last row, the number of frames.
int64_t frame_of(const Groups& g, int64_t row) {
    if (row >= g.cu_rows[g.n_clips]) return g.cu_frames[g.n_clips];
    const int64_t clip = clip_of(g.cu_rows, g.n_clips, row);
    return g.cu_frames[clip] + (row - g.cu_rows[clip]) * g.factor;
}

// Rows [first, last) of the natural logarithm, block by block.
template <typename Sample, typename Out>
void run_rows(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int64_t first, int64_t last,
              Worker& worker, float* tile, Rows<Out>& rows) {
    if (first == last) return;
    const int64_t width = plan.tables.view.n_mels;
    rows.start(first);
    const auto place = [&](int64_t frame, int64_t begin) {
        if constexpr (std::is_same_v<Out, float>)
            if (rows.in_place) return rows.stacked(frame);
        return tile + (frame - begin) * width;
    };
    run_blocks(plan, waveform, ragged, first, last, rows.in_place && rows.stream, worker, place,
               [&](int64_t begin, int64_t end) { rows.add(tile, begin, end); });
}

// The same of the mean over eight frames, two rows of a clip at a time.
template <typename Sample, typename Out>
void run_means(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, const Groups& groups, int64_t first,
               int64_t last, Worker& worker, float* tile, Out* out) {
    const int64_t width = groups.width;
    for (int64_t row = first, clip = -1; row < last;) {
        if (clip < 0 || row >= groups.cu_rows[clip + 1]) clip = clip_of(groups.cu_rows, groups.n_clips, row);
        const int64_t begin = (row - groups.cu_rows[clip]) * groups.factor;
        const int64_t n_rows = std::min<int64_t>({2, last - row, groups.cu_rows[clip + 1] - row});
        const int64_t n = std::min(n_rows * groups.factor, ragged.cu_frames[clip + 1] - ragged.cu_frames[clip] - begin);
        Block block{};
        place_clip(plan, waveform + ragged.cu_samples[clip], ragged.cu_samples[clip + 1] - ragged.cu_samples[clip], begin,
                   n, worker, block);
        float* into = tile;
        if constexpr (std::is_same_v<Out, float>) into = out + row * width;
        block.out_rows[0] = into;
        block.out_rows[groups.factor] = into + width;
        worker.note(plan.level.pooled(plan.tables.view, plan.floor, block, static_cast<int>(n), worker.scratch.get()),
                    ragged.cu_frames[clip] + begin, n);
        if constexpr (!std::is_same_v<Out, float>) convert(plan.level, tile, n_rows * width, false, out + row * width);
        row += n_rows;
    }
}

// Whisper's scale needs the maximum of a clip before anything is pooled: its frames wait in `tile`.
template <typename Sample, typename Out>
void run_whisper(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, int64_t clip, Worker& worker,
                 float* tile, Rows<Out>& rows) {
    const int64_t first = ragged.cu_frames[clip], last = ragged.cu_frames[clip + 1];
    if (first == last) return;
    const float lowest = run_clip(plan, waveform, ragged, clip, worker, tile) - WHISPER_RANGE;
    plan.level.clamp_whisper(lowest, tile, (last - first) * plan.tables.view.n_mels, false, tile);
    rows.start(first);
    rows.add(tile, first, last);
}

}  // namespace

template <typename Sample, typename Out>
int64_t log_mel_downsample(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, const Groups& groups,
                           Pool pool, int n_threads, Out* out) {
    const bool whisper = plan.log == Log::whisper;
    const int64_t n_clips = ragged.n_clips, n_frames = ragged.cu_frames[n_clips], n_rows = groups.cu_rows[n_clips];
    const int64_t n_parts = whisper ? n_clips : n_rows;
    // Of Whisper's scale every part holds the frames of a clip.
    const int64_t n_workers = part_count(n_threads, n_frames, n_parts, whisper ? 1 : PARTS_PER_THREAD);
    const bool means = !whisper && pool == Pool::mean && groups.factor == LANES / 2 && groups.width % 8 == 0 &&
                       plan.level.pooled != nullptr;
    const bool in_place = !whisper && pool == Pool::stack && std::is_same_v<Out, float>;
    const bool stream = pool == Pool::stack && streams(out, groups.width, n_rows * groups.factor);
    // Worker w has the clips or rows from shares[w]: about as many frames or rows each.
    std::vector<int64_t> shares;
    if (whisper)
        shares = share_clips(ragged, n_workers);
    else
        for (int64_t w = 0; w <= n_workers; ++w) shares.push_back(n_rows * w / n_workers);
    const int64_t tile_frames = whisper ? std::max<int64_t>(LANES, longest_clip(ragged)) : LANES;
    std::vector<std::unique_ptr<float[]>> tiles;
    std::vector<Rows<Out>> rows;
    for (int64_t w = 0; w < n_workers; ++w) {
        tiles.emplace_back(in_place ? nullptr : new float[static_cast<size_t>(tile_frames * plan.tables.view.n_mels)]);
        rows.emplace_back(plan.level, groups, pool, in_place, stream, out);
    }
    return run_workers(n_workers, n_threads, plan, ragged, [&](Worker& worker, int64_t w) {
        const size_t at = static_cast<size_t>(w);
        float* tile = tiles[at].get();
        if (means)
            run_means(plan, waveform, ragged, groups, shares[at], shares[at + 1], worker, tile, out);
        else if (!whisper)
            run_rows(plan, waveform, ragged, frame_of(groups, shares[at]), frame_of(groups, shares[at + 1]), worker, tile,
                     rows[at]);
        else
            for (int64_t clip = shares[at]; clip < shares[at + 1]; ++clip)
                run_whisper(plan, waveform, ragged, clip, worker, tile, rows[at]);
    });
}

template int64_t log_mel_downsample(const MelPlan&, const float*, const Ragged&, const Groups&, Pool, int, float*);
template int64_t log_mel_downsample(const MelPlan&, const float*, const Ragged&, const Groups&, Pool, int, uint16_t*);
template int64_t log_mel_downsample(const MelPlan&, const int16_t*, const Ragged&, const Groups&, Pool, int, float*);
template int64_t log_mel_downsample(const MelPlan&, const int16_t*, const Ragged&, const Groups&, Pool, int, uint16_t*);

}  // namespace muomni
