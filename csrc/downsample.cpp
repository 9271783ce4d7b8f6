// Frames at 100 Hz -> rows at 12.5 Hz inside each clip. Bound by memory: plain loops over contiguous columns.
#include "downsample.h"

#include <algorithm>

namespace muomni {

namespace {

// Calls visit(first frame, number of frames, row) for every group of every clip.
template <typename Visit>
void for_groups(const Groups& g, Visit visit) {
    for (int64_t clip = 0; clip < g.n_clips; ++clip)
        for (int64_t row = g.cu_rows[clip], frame = g.cu_frames[clip]; row < g.cu_rows[clip + 1]; ++row, frame += g.factor)
            visit(frame, std::min(g.factor, g.cu_frames[clip + 1] - frame), row);
}

// As torch's: a NaN is larger than every number, and the first of equals stays.
bool larger(float candidate, float best) { return candidate > best || (candidate != candidate && best == best); }

}  // namespace

void downsample(const float* frames, const Groups& groups, Pool pool, float* out) {
    const int64_t width = groups.width, factor = groups.factor;
    for_groups(groups, [=](int64_t frame, int64_t count, int64_t row) {
        const float* x = frames + frame * width;
        if (pool == Pool::stack) {
            float* y = out + row * factor * width;
            std::fill(std::copy(x, x + count * width, y), y + factor * width, 0.0f);
            return;
        }
        float* y = out + row * width;
        std::copy(x, x + width, y);
        for (int64_t f = 1; f < count; ++f) {
            const float* next = x + f * width;
            if (pool == Pool::mean)
                for (int64_t c = 0; c < width; ++c) y[c] += next[c];
            else
                for (int64_t c = 0; c < width; ++c) y[c] = larger(next[c], y[c]) ? next[c] : y[c];
        }
        if (pool == Pool::mean)
            for (int64_t c = 0; c < width; ++c) y[c] /= static_cast<float>(count);
    });
}

void downsample_backward(const float* d_out, const float* frames, const Groups& groups, Pool pool, float* d_frames) {
    const int64_t width = groups.width, factor = groups.factor;
    for_groups(groups, [=](int64_t frame, int64_t count, int64_t row) {
        float* dx = d_frames + frame * width;
        if (pool == Pool::stack) {
            const float* dy = d_out + row * factor * width;
            std::copy(dy, dy + count * width, dx);
            return;
        }
        const float* dy = d_out + row * width;
        if (pool == Pool::mean) {
            for (int64_t f = 0; f < count; ++f)
                for (int64_t c = 0; c < width; ++c) dx[f * width + c] = dy[c] / static_cast<float>(count);
            return;
        }
        std::fill(dx, dx + count * width, 0.0f);
        const float* x = frames + frame * width;
        for (int64_t c = 0; c < width; ++c) {
            int64_t best = 0;
            for (int64_t f = 1; f < count; ++f)
                if (larger(x[f * width + c], x[best * width + c])) best = f;
            dx[best * width + c] = dy[c];
        }
    });
}

}  // namespace muomni
