// Waveform -> rows at 12.5 Hz in one pass: log-mel and downsampling without frames at 100 Hz in memory.
#pragma once

#include <cstdint>

#include "downsample.h"
#include "log_mel.h"

namespace muomni {

// out: (cu_rows[n_clips], n_mels), or factor * n_mels columns for stack, of float or of uint16_t, the bits of bfloat16
// rounded to nearest even. The caller has checked every offset and length; groups.cu_frames is ragged.cu_frames.
// Returns the first clip that holds a sample that is not finite, else -1.
template <typename Sample, typename Out>
int64_t log_mel_downsample(const MelPlan& plan, const Sample* waveform, const Ragged& ragged, const Groups& groups,
                           Pool pool, int n_threads, Out* out);

}  // namespace muomni
