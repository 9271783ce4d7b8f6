// Frames at 100 Hz -> rows at 12.5 Hz inside each clip. Bound by memory: plain loops over contiguous columns.
#include "downsample.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "element.h"

namespace muomni {

namespace {

// A clip's frames from begin to before end, and its rows that hold any.
struct Clip {
    int64_t begin, end, first_row, n_rows;
};

Clip clip_of(const Groups& g, int64_t clip) {
    const int64_t begin = g.cu_frames[clip * g.stride], end = g.cu_frames[clip * g.stride + 1], n = end - begin;
    return {begin, end, g.cu_rows[clip], n / g.factor + (n % g.factor != 0)};
}

// Calls visit(first frame, number of frames, row, clip) for every group of every clip.
template <typename Visit>
void for_groups(const Groups& g, Visit visit) {
    for (int64_t index = 0; index < g.n_clips; ++index) {
        const Clip clip = clip_of(g, index);
        for (int64_t r = 0, frame = clip.begin; r < clip.n_rows; ++r, frame += g.factor)
            visit(frame, std::min(g.factor, clip.end - frame), clip.first_row + r, clip);
    }
}

template <typename Stored>
void zero(Stored* x, int64_t from, int64_t to, int64_t columns) {
    std::fill(x + from * columns, x + to * columns, Stored{});
}

// The rows that hold no frame.
template <typename Stored>
void zero_other_rows(const Groups& g, int64_t columns, Stored* out) {
    for (int64_t index = 0; index < g.n_clips; ++index) {
        const Clip clip = clip_of(g, index);
        zero(out, clip.first_row + clip.n_rows, g.cu_rows[index + 1], columns);
    }
    zero(out, g.cu_rows[g.n_clips], g.n_rows, columns);
}

// The frames of no clip.
template <typename Stored>
void zero_other_frames(const Groups& g, Stored* frames) {
    int64_t from = 0;
    for (int64_t index = 0; index < g.n_clips; ++index) {
        const Clip clip = clip_of(g, index);
        zero(frames, from, clip.begin, g.width);
        from = clip.end;
    }
    zero(frames, from, g.n_frames, g.width);
}

// The window of the row whose group begins at `frame`: what lies in the clip is one piece of memory.
template <typename Stored>
void stack_row(const Stored* frames, const Groups& g, int64_t frame, const Clip& clip, Stored* y) {
    const int64_t width = g.width, start = frame - g.lead, stop = start + g.window;
    const int64_t from = std::max(start, clip.begin), to = std::min(stop, clip.end);
    const auto outside = [&](int64_t count, int64_t nearest) {
        if (!g.repeat) {
            y = std::fill_n(y, count * width, Stored{});
            return;
        }
        const Stored* x = frames + nearest * width;
        for (; count > 0; --count) y = std::copy(x, x + width, y);
    };
    outside(from - start, clip.begin);
    y = std::copy(frames + from * width, frames + to * width, y);
    outside(stop - to, clip.end - 1);
}

// The gradient of one frame of a clip: what every window that shows it gives, added up in float.
template <typename Element>
class Gather {
public:
    using Stored = typename Element::Stored;

    Gather(const Groups& g, const Stored* d_out) : g_(g), d_out_(d_out), sum_(static_cast<size_t>(g.width)) {}

    void run(const Clip& clip, int64_t frame, Stored* dx) {
        const int64_t i = frame - clip.begin, n = clip.end - clip.begin;
        n_added_ = 0;
        // Rows whose window reaches the frame; an edge is also all that lies beyond it.
        const bool first = g_.repeat && i == 0, last = g_.repeat && i == n - 1;
        const int64_t before = i + g_.lead - (g_.window - 1);
        const int64_t low = first || before <= 0 ? 0 : (before + g_.factor - 1) / g_.factor;
        const int64_t high = last ? clip.n_rows - 1 : std::min((i + g_.lead) / g_.factor, clip.n_rows - 1);
        for (int64_t r = low; r <= high; ++r) {
            const int64_t place = i - (r * g_.factor - g_.lead);
            const int64_t from = first ? 0 : std::max<int64_t>(0, place);
            const int64_t to = last ? g_.window - 1 : std::min(place, g_.window - 1);
            for (int64_t p = from; p <= to; ++p) add(d_out_ + ((clip.first_row + r) * g_.window + p) * g_.width);
        }
        const float* sum = sum_.data();
        for (int64_t c = 0; c < g_.width; ++c) dx[c] = n_added_ ? Element::narrow(sum[c]) : Stored{};
    }

private:
    void add(const Stored* dy) {
        float* sum = sum_.data();
        if (n_added_++ == 0)
            for (int64_t c = 0; c < g_.width; ++c) sum[c] = Element::wide(dy[c]);
        else
            for (int64_t c = 0; c < g_.width; ++c) sum[c] += Element::wide(dy[c]);
    }

    const Groups& g_;
    const Stored* d_out_;
    std::vector<float> sum_;
    int64_t n_added_ = 0;
};

// As torch's: a NaN is larger than every number, and the first of equals stays.
bool larger(float candidate, float best) { return candidate > best || (candidate != candidate && best == best); }

}  // namespace

template <typename Element>
void downsample(const typename Element::Stored* frames, const Groups& groups, Pool pool, typename Element::Stored* out,
                const SimdLevel& level) {
    using Stored = typename Element::Stored;
    const int64_t width = groups.width, columns = width * (pool == Pool::stack ? groups.window : 1);
    zero_other_rows(groups, columns, out);
    if (pool == Pool::stack) {
        for_groups(groups, [&](int64_t frame, int64_t, int64_t row, const Clip& clip) {
            stack_row(frames, groups, frame, clip, out + row * columns);
        });
        return;
    }
    constexpr bool is_float = std::is_same_v<Stored, float>;
    // Of half types the row and the next frame as floats: loops of one kind each become vector code.
    std::vector<float> sum(is_float ? 0 : static_cast<size_t>(width)), widened(sum.size());
    for_groups(groups, [&](int64_t frame, int64_t count, int64_t row, const Clip&) {
        const Stored* x = frames + frame * width;
        if constexpr (is_float)
            if (pool == Pool::mean) return level.mean_rows(x, count, width, out + row * width);
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
    zero_other_frames(groups, d_frames);
    if (pool == Pool::stack && (groups.window != factor || groups.lead > 0 || groups.repeat)) {
        Gather<Element> gather(groups, d_out);
        for (int64_t index = 0; index < groups.n_clips; ++index) {
            const Clip clip = clip_of(groups, index);
            for (int64_t frame = clip.begin; frame < clip.end; ++frame)
                gather.run(clip, frame, d_frames + frame * width);
        }
        return;
    }
    for_groups(groups, [=](int64_t frame, int64_t count, int64_t row, const Clip&) {
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
    template void downsample<Element>(const Element::Stored*, const Groups&, Pool, Element::Stored*,               \
                                      const SimdLevel&);                                                           \
    template void downsample_backward<Element>(const Element::Stored*, const Element::Stored*, const Groups&, Pool, \
                                               Element::Stored*);
MUOMNI_ELEMENT(Float32)
MUOMNI_ELEMENT(Bfloat16)
MUOMNI_ELEMENT(Float16)

}  // namespace muomni
