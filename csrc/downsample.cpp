// Frames at 100 Hz -> frames at 12.5 Hz inside each clip.
#include "downsample.h"

#include <algorithm>
#include <cstring>

#include "lanes.h"

namespace muomni {

namespace {

// Calls visit(first frame, frames, output row) for every group of every clip.
template <typename Visit>
MUOMNI_INLINE void for_groups(const int64_t* cu_in, const int64_t* cu_out, int64_t n_clips, int64_t factor, Visit visit) {
    for (int64_t clip = 0; clip < n_clips; ++clip)
        for (int64_t row = cu_out[clip], frame = cu_in[clip]; row < cu_out[clip + 1]; ++row, frame += factor)
            visit(frame, std::min(factor, cu_in[clip + 1] - frame), row);
}

}  // namespace

MUOMNI_CLONES
void downsample(const float* in, const int64_t* cu_in, const int64_t* cu_out, int64_t n_clips, int64_t width,
                int64_t factor, Pool pool, float* out) {
    for_groups(cu_in, cu_out, n_clips, factor, [=](int64_t frame, int64_t count, int64_t row) {
        const float* x = in + frame * width;
        if (pool == Pool::stack) {
            float* y = out + row * factor * width;
            std::memcpy(y, x, sizeof(float) * count * width);
            std::fill(y + count * width, y + factor * width, 0.0f);
            return;
        }
        float* y = out + row * width;
        std::memcpy(y, x, sizeof(float) * width);
        for (int64_t f = 1; f < count; ++f)
            for (int64_t c = 0; c < width; ++c) {
                const float v = x[f * width + c];
                y[c] = pool == Pool::mean ? y[c] + v : std::max(y[c], v);
            }
        if (pool == Pool::mean)
            for (int64_t c = 0; c < width; ++c) y[c] /= static_cast<float>(count);
    });
}

void downsample_backward(const float* d_out, const float* in, const int64_t* cu_in, const int64_t* cu_out,
                         int64_t n_clips, int64_t width, int64_t factor, Pool pool, float* d_in) {
    for_groups(cu_in, cu_out, n_clips, factor, [=](int64_t frame, int64_t count, int64_t row) {
        float* dx = d_in + frame * width;
        if (pool == Pool::stack) {
            std::memcpy(dx, d_out + row * factor * width, sizeof(float) * count * width);
            return;
        }
        const float* dy = d_out + row * width;
        if (pool == Pool::mean) {
            for (int64_t f = 0; f < count; ++f)
                for (int64_t c = 0; c < width; ++c) dx[f * width + c] = dy[c] / static_cast<float>(count);
            return;
        }
        std::fill(dx, dx + count * width, 0.0f);
        const float* x = in + frame * width;
        for (int64_t c = 0; c < width; ++c) {
            int64_t best = 0;
            for (int64_t f = 1; f < count; ++f)
                if (x[f * width + c] > x[best * width + c]) best = f;
            dx[best * width + c] = dy[c];
        }
    });
}

}  // namespace muomni
