// Frames at 100 Hz -> rows at 12.5 Hz inside each clip. Bound by memory: plain loops over contiguous columns.
#include "downsample.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "element.h"

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

template <typename Element>
void downsample(const typename Element::Stored* frames, const Groups& groups, Pool pool, typename Element::Stored* out) {
    using Stored = typename Element::Stored;
    const int64_t width = groups.width, factor = groups.factor;
    constexpr bool is_float = std::is_same_v<Stored, float>;
    // Of half types the row and the next frame as floats: loops of one kind each become vector code.
    std::vector<float> sum(is_float ? 0 : static_cast<size_t>(width)), widened(sum.size());
    for_groups(groups, [&](int64_t frame, int64_t count, int64_t row) {
        const Stored* x = frames + frame * width;
        if (pool == Pool::stack) {
            Stored* y = out + row * factor * width;
            std::fill(std::copy(x, x + count * width, y), y + factor * width, Stored{});
            return;
        }
        float* y = sum.data();
        if constexpr (is_float) y = out + row * width;
        for (int64_t c = 0; c < width; ++c) y[c] = Element::wide(x[c]);
        for (int64_t f = 1; f < count; ++f) {
            const float* next = widened.data();
            if constexpr (is_float)
                next = x + f * width;
            else
                for (int64_t c = 0; c < width; ++c) widened[static_cast<size_t>(c)] = Element::wide(x[f * width + c]);
            if (pool == Pool::mean)
                for (int64_t c = 0; c < width; ++c) y[c] += next[c];
            else
                for (int64_t c = 0; c < width; ++c) y[c] = larger(next[c], y[c]) ? next[c] : y[c];
        }
        if (pool == Pool::mean)
            for (int64_t c = 0; c < width; ++c) y[c] /= static_cast<float>(count);
        if constexpr (!is_float)
            for (int64_t c = 0; c < width; ++c) out[row * width + c] = Element::narrow(y[c]);
    });
}

template <typename Element>
void downsample_backward(const typename Element::Stored* d_out, const typename Element::Stored* frames,
                         const Groups& groups, Pool pool, typename Element::Stored* d_frames) {
    using Stored = typename Element::Stored;
    const int64_t width = groups.width, factor = groups.factor;
    for_groups(groups, [=](int64_t frame, int64_t count, int64_t row) {
        Stored* dx = d_frames + frame * width;
        if (pool == Pool::stack) {
            const Stored* dy = d_out + row * factor * width;
            std::copy(dy, dy + count * width, dx);
            return;
        }
        const Stored* dy = d_out + row * width;
        if (pool == Pool::mean) {
            for (int64_t c = 0; c < width; ++c) dx[c] = Element::narrow(Element::wide(dy[c]) / static_cast<float>(count));
            for (int64_t f = 1; f < count; ++f) std::copy(dx, dx + width, dx + f * width);
            return;
        }
        std::fill(dx, dx + count * width, Stored{});
        const Stored* x = frames + frame * width;
        for (int64_t c = 0; c < width; ++c) {
            int64_t best = 0;
            for (int64_t f = 1; f < count; ++f)
                if (larger(Element::wide(x[f * width + c]), Element::wide(x[best * width + c]))) best = f;
            dx[best * width + c] = dy[c];
        }
    });
}

#define MUOMNI_ELEMENT(Element)                                                                                    \
    template void downsample<Element>(const Element::Stored*, const Groups&, Pool, Element::Stored*);              \
    template void downsample_backward<Element>(const Element::Stored*, const Element::Stored*, const Groups&, Pool, \
                                               Element::Stored*);
MUOMNI_ELEMENT(Float32)
MUOMNI_ELEMENT(Bfloat16)
MUOMNI_ELEMENT(Float16)

}  // namespace muomni
