// Frames at 100 Hz -> rows at 12.5 Hz inside each clip: mean, max or stack, forward and backward.
// Stacking every n-th of overlapping windows is the low frame rate of Pundak and Sainath (2016), as FunASR has it.
#pragma once

#include <cstdint>

#include "simd.h"

namespace muomni {

enum class Pool { mean, max, stack };

// A clip's last group may be short: mean divides by the frames there are, stack fills with zeros. A stack may look
// further than its group: row r holds `window` frames from r * factor - lead on, and beyond the clip's ends zeros, or
// with `repeat` its first and last frame.
struct Groups {
    const int64_t* cu_frames;  // clip i: the frames from [i * stride] to before [i * stride + 1]
    const int64_t* cu_rows;    // (n_clips + 1,): at least ceil(frames / factor) rows a clip, those behind them zero
    int64_t n_clips, width, factor;
    int64_t window = factor, lead = 0;
    bool repeat = false;
    int64_t stride = 1;  // 1: cu_frames is (n_clips + 1,), clips lie one behind another. 2: begins and ends in turn.
    int64_t n_frames = cu_frames[n_clips], n_rows = cu_rows[n_clips];  // of the arrays: more than the clips' are zeros
};

// frames: (n_frames, width); out: (n_rows, width), or window * width columns for stack; both of Element (element.h).
// Sums are of float. window, lead and repeat are stack's alone.
template <typename Element>
void downsample(const typename Element::Stored* frames, const Groups& groups, Pool pool, typename Element::Stored* out,
                const SimdLevel& level = simd_levels().front());

// d_frames is written everywhere. For max the gradient goes to the first frame that holds the maximum; the other
// two do not read frames. Where windows share a frame its gradients are added in the order of rows and columns.
template <typename Element>
void downsample_backward(const typename Element::Stored* d_out, const typename Element::Stored* frames,
                         const Groups& groups, Pool pool, typename Element::Stored* d_frames);

}  // namespace muomni
