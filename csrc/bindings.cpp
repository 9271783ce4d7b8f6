// muomni_kernels._C: checks every array and offset of the front end, releases the GIL, and runs it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "downsample.h"
#include "element.h"
#include "fused.h"
#include "log_mel.h"
#include "decode_bindings.h"
#include "row_bindings.h"

namespace py = pybind11;
using namespace muomni;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

constexpr int64_t MAX_FFT = 65536, MAX_MELS = 4096, MAX_FACTOR = 65536, MAX_THREADS = 1024;

void require(bool condition, const std::string& message) {
    if (!condition) throw std::invalid_argument(message);
}

// Offsets must start at 0, never fall, and end at `total`.
void check_offsets(const Array<int64_t>& offsets, int64_t total, const std::string& name) {
    require(offsets.ndim() == 1 && offsets.size() >= 1, name + ": expected (n + 1,) int64.");
    const int64_t* at = offsets.data();
    require(at[0] == 0, name + ": expected to start at 0, got " + std::to_string(at[0]) + ".");
    for (py::ssize_t i = 1; i < offsets.size(); ++i)
        require(at[i] >= at[i - 1], name + ": falls at index " + std::to_string(i) + ".");
    require(at[offsets.size() - 1] == total,
            name + ": ends at " + std::to_string(at[offsets.size() - 1]) + ", expected " + std::to_string(total) + ".");
}

std::unique_ptr<MelTables> make_tables(const Array<float>& window, const Array<float>& filters) {
    require(window.ndim() == 1 && filters.ndim() == 2, "window, filters: expected (n_fft,) and (n_mels, n_fft / 2 + 1).");
    const int64_t n_fft = window.shape(0), n_mels = filters.shape(0);
    require(n_fft >= 4 && n_fft <= MAX_FFT && n_fft % 2 == 0, "n_fft: expected an even number from 4 to 65536.");
    require(n_mels >= 1 && n_mels <= MAX_MELS, "n_mels: expected 1 to 4096.");
    require(filters.shape(1) == n_fft / 2 + 1, "filters: expected n_fft / 2 + 1 columns.");
    return std::make_unique<MelTables>(static_cast<int>(n_fft), window.data(), filters.data(), static_cast<int>(n_mels));
}

MelPlan make_plan(const MelTables& tables, int64_t hop_length, const std::string& padding, const std::string& log,
                  float floor, const std::string& simd) {
    require(hop_length >= 1 && hop_length <= tables.view.n_fft, "hop_length: expected 1 to n_fft.");
    require(padding == "causal" || padding == "reflect", "padding: expected causal or reflect, got " + padding + ".");
    require(log == "ln" || log == "whisper", "log: expected ln or whisper, got " + log + ".");
    // Below the smallest normal number the logarithm's bit arithmetic does not hold.
    require(floor >= 1.17549435e-38f && floor <= 3.4e38f, "floor: expected a positive normal float32.");
    return {tables, static_cast<int>(hop_length), padding == "causal" ? Padding::causal : Padding::reflect,
            log == "ln" ? Log::natural : Log::whisper, floor, level_named(simd)};
}

// Checks offsets and the length rule of a ragged batch.
template <typename Sample>
Ragged check_ragged(const MelPlan& plan, const Array<Sample>& waveform, const Array<int64_t>& cu_samples,
                    const Array<int64_t>& cu_frames, int64_t n_frames, int64_t n_threads) {
    require(waveform.ndim() == 1, "waveform: expected (n_samples,).");
    require(n_threads >= 1 && n_threads <= MAX_THREADS, "n_threads: expected 1 to 1024.");
    check_offsets(cu_samples, waveform.size(), "cu_samples");
    check_offsets(cu_frames, n_frames, "cu_frames");
    require(cu_samples.size() == cu_frames.size(), "cu_samples, cu_frames: expected the same length.");
    const int64_t *sample_at = cu_samples.data(), *frame_at = cu_frames.data(), n_clips = cu_samples.size() - 1;
    for (int64_t i = 0; i < n_clips; ++i) {
        const int64_t n_samples = sample_at[i + 1] - sample_at[i], clip_frames = frame_at[i + 1] - frame_at[i];
        require(clip_frames == plan.frames(n_samples),
                "cu_frames: clip " + std::to_string(i) + " does not follow the length rule.");
        require(plan.padding == Padding::causal || clip_frames == 0 || n_samples > plan.tables.view.n_fft / 2,
                "waveform: clip " + std::to_string(i) + " is too short to reflect.");
    }
    return {sample_at, frame_at, n_clips};
}

template <typename Sample>
int64_t run_log_mel(const MelTables& tables, const Array<Sample>& waveform, const Array<int64_t>& cu_samples,
                    const Array<int64_t>& cu_frames, Array<float> out, int64_t hop_length, const std::string& padding,
                    const std::string& log, float floor, int64_t n_threads, const std::string& simd) {
    const MelPlan plan = make_plan(tables, hop_length, padding, log, floor, simd);
    require(out.ndim() == 2 && out.shape(1) == tables.view.n_mels, "out: expected (n_frames, n_mels) float32.");
    const Ragged ragged = check_ragged(plan, waveform, cu_samples, cu_frames, out.shape(0), n_threads);
    const Sample* from = waveform.data();
    float* into = out.mutable_data();
    py::gil_scoped_release release;
    return log_mel<Sample>(plan, from, ragged, static_cast<int>(n_threads), into);
}

Pool pool_of(const std::string& mode) {
    if (mode == "mean") return Pool::mean;
    if (mode == "max") return Pool::max;
    require(mode == "stack", "mode: expected mean, max or stack, got " + mode + ".");
    return Pool::stack;
}

// Checks offsets and the length rule of rows of `width` columns a frame; `coarse` has the rows.
template <typename T>
Groups check_rows(int64_t n_frames, int64_t width, const Array<T>& coarse, const Array<int64_t>& cu_fine,
                  const Array<int64_t>& cu_coarse, int64_t factor, Pool pool) {
    require(factor >= 1 && factor <= MAX_FACTOR, "factor: expected 1 to 65536.");
    require(coarse.ndim() == 2, "rows: expected two dimensions.");
    const int64_t columns = pool == Pool::stack ? factor : 1;
    require(width <= INT64_MAX / MAX_FACTOR && coarse.shape(1) == width * columns, "rows: wrong number of columns.");
    check_offsets(cu_fine, n_frames, "cu_frames");
    check_offsets(cu_coarse, coarse.shape(0), "cu_rows");
    require(cu_fine.size() == cu_coarse.size(), "cu_frames, cu_rows: expected the same length.");
    const int64_t *frame_at = cu_fine.data(), *row_at = cu_coarse.data(), n_clips = cu_fine.size() - 1;
    for (int64_t i = 0; i < n_clips; ++i) {
        const int64_t n = frame_at[i + 1] - frame_at[i];
        require(row_at[i + 1] - row_at[i] == n / factor + (n % factor != 0),
                "cu_rows: clip " + std::to_string(i) + " does not hold ceil(frames / factor) rows.");
    }
    return {frame_at, row_at, n_clips, width, factor};
}

// What the two directions of downsample share: `fine` has the frames, `coarse` the rows. Clips rise and lie inside the
// frames; each has rows for its frames.
template <typename T>
Groups check_groups(const Array<T>& fine, const Array<T>& coarse, const Array<int64_t>& clips,
                    const Array<int64_t>& cu_rows, int64_t factor, Pool pool, int64_t window, int64_t lead,
                    bool repeat) {
    require(factor >= 1 && factor <= MAX_FACTOR, "factor: expected 1 to 65536.");
    require(window >= 1 && window <= MAX_FACTOR && lead >= 0 && lead < window,
            "window, lead: expected 1 to 65536 and 0 to window - 1.");
    require(pool == Pool::stack || (window == factor && lead == 0 && !repeat), "window, lead, repeat: need stack.");
    require(fine.ndim() == 2 && coarse.ndim() == 2, "frames, rows: expected two dimensions.");
    const int64_t n_frames = fine.shape(0), n_rows = coarse.shape(0), width = fine.shape(1);
    require(width <= INT64_MAX / MAX_FACTOR && coarse.shape(1) == width * (pool == Pool::stack ? window : 1),
            "rows: wrong number of columns.");
    require(cu_rows.ndim() == 1 && cu_rows.size() >= 1, "cu_rows: expected (n + 1,) int64.");
    const int64_t n_clips = cu_rows.size() - 1, stride = clips.size() == n_clips + 1 ? 1 : 2;
    require(clips.ndim() == 1 && (stride == 1 || clips.size() == 2 * n_clips),
            "cu_frames: expected (n + 1,) offsets or (2 n,) begins and ends in turn.");
    const int64_t *frame_at = clips.data(), *row_at = cu_rows.data();
    for (int64_t i = 0; i < clips.size(); ++i)
        require(frame_at[i] >= (i ? frame_at[i - 1] : 0) && frame_at[i] <= n_frames,
                "cu_frames: falls or leaves the frames at index " + std::to_string(i) + ".");
    require(row_at[0] == 0 && row_at[n_clips] <= n_rows, "cu_rows: expected to start at 0 and end inside the rows.");
    for (int64_t i = 0; i < n_clips; ++i) {
        const int64_t n = frame_at[i * stride + 1] - frame_at[i * stride], needed = n / factor + (n % factor != 0);
        require(row_at[i + 1] >= row_at[i] && row_at[i + 1] - row_at[i] >= needed,
                "cu_rows: clip " + std::to_string(i) + " has less than ceil(frames / factor) rows.");
    }
    return {frame_at, row_at, n_clips, width, factor, window, lead, repeat, stride, n_frames, n_rows};
}

// Calls run with the element that arrays of T hold.
template <typename T, typename Run>
void with_element(const std::string& dtype, Run run) {
    if constexpr (std::is_same_v<T, float>) {
        require(dtype == "float32", "dtype: expected float32 for an array of float32, got " + dtype + ".");
        run(Float32{});
    } else {
        require(dtype == "bfloat16" || dtype == "float16",
                "dtype: expected bfloat16 or float16 for an array of uint16, got " + dtype + ".");
        if (dtype == "bfloat16")
            run(Bfloat16{});
        else
            run(Float16{});
    }
}

template <typename Sample, typename Out>
int64_t run_log_mel_downsample(const MelTables& tables, const Array<Sample>& waveform, const Array<int64_t>& cu_samples,
                               const Array<int64_t>& cu_frames, const Array<int64_t>& cu_rows, Array<Out> out,
                               int64_t factor, const std::string& mode, int64_t hop_length, const std::string& padding,
                               const std::string& log, float floor, int64_t n_threads, const std::string& simd) {
    const MelPlan plan = make_plan(tables, hop_length, padding, log, floor, simd);
    const Pool pool = pool_of(mode);
    require(cu_frames.ndim() == 1 && cu_frames.size() >= 1, "cu_frames: expected (n + 1,) int64.");
    const int64_t n_frames = cu_frames.data()[cu_frames.size() - 1];
    const Ragged ragged = check_ragged(plan, waveform, cu_samples, cu_frames, n_frames, n_threads);
    const Groups groups = check_rows(n_frames, tables.view.n_mels, out, cu_frames, cu_rows, factor, pool);
    const Sample* from = waveform.data();
    Out* into = out.mutable_data();
    py::gil_scoped_release release;
    return log_mel_downsample(plan, from, ragged, groups, pool, static_cast<int>(n_threads), into);
}

template <typename T>
void run_downsample(const Array<T>& frames, const Array<int64_t>& cu_frames, const Array<int64_t>& cu_rows,
                    int64_t factor, const std::string& mode, Array<T> out, const std::string& dtype, int64_t window,
                    int64_t lead, bool repeat, const std::string& simd) {
    const Pool pool = pool_of(mode);
    const Groups groups =
        check_groups(frames, out, cu_frames, cu_rows, factor, pool, window ? window : factor, lead, repeat);
    const SimdLevel& level = level_named(simd);
    const T* from = frames.data();
    T* into = out.mutable_data();
    with_element<T>(dtype, [&](auto element) {
        py::gil_scoped_release release;
        downsample<decltype(element)>(from, groups, pool, into, level);
    });
}

template <typename T>
void run_downsample_backward(const Array<T>& d_out, const Array<T>& frames, const Array<int64_t>& cu_frames,
                             const Array<int64_t>& cu_rows, int64_t factor, const std::string& mode, Array<T> d_frames,
                             const std::string& dtype, int64_t window, int64_t lead, bool repeat) {
    const Pool pool = pool_of(mode);
    const Groups groups =
        check_groups(d_frames, d_out, cu_frames, cu_rows, factor, pool, window ? window : factor, lead, repeat);
    require(pool != Pool::max || (frames.ndim() == 2 && frames.shape(0) == d_frames.shape(0) &&
                                  frames.shape(1) == d_frames.shape(1)),
            "frames: expected the shape of d_frames.");
    const T *gradient = d_out.data(), *from = frames.data();
    T* into = d_frames.mutable_data();
    with_element<T>(dtype, [&](auto element) {
        py::gil_scoped_release release;
        downsample_backward<decltype(element)>(gradient, from, groups, pool, into);
    });
}

std::vector<std::string> level_names() {
    std::vector<std::string> names;
    for (const SimdLevel& level : simd_levels()) names.push_back(level.name);
    return names;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    // noconvert: an array of another layout would be copied, and what is written to a copy is lost.
    const auto array = [](const char* name) { return py::arg(name).noconvert(); };
    module.doc() = "muomni's audio front end (log-mel and mel-frame downsampling) and row-wise ops.";
    module.def("simd_levels", &level_names, "Instruction sets this CPU has, the fastest first.");
    py::class_<MelTables>(module, "MelTables", "Tables of one log-mel definition.")
        .def(py::init(&make_tables), array("window"), array("filters"));
    const auto define_log_mel = [&](auto run) {
        module.def("log_mel", run, py::arg("tables"), array("waveform"), array("cu_samples"), array("cu_frames"),
                   array("out"), py::kw_only(), py::arg("hop_length"), py::arg("padding"), py::arg("log"),
                   py::arg("floor"), py::arg("n_threads"), py::arg("simd"),
                   "Ragged waveforms into out (n_frames, n_mels); the first clip that is not finite, or -1.");
    };
    define_log_mel(&run_log_mel<float>);
    define_log_mel(&run_log_mel<int16_t>);
    const auto define_fused = [&](auto run) {
        module.def("log_mel_downsample", run, py::arg("tables"), array("waveform"), array("cu_samples"),
                   array("cu_frames"), array("cu_rows"), array("out"), py::kw_only(), py::arg("factor"), py::arg("mode"),
                   py::arg("hop_length"), py::arg("padding"), py::arg("log"), py::arg("floor"), py::arg("n_threads"),
                   py::arg("simd"),
                   "Both in one; out is float32, or uint16 for the bits of bfloat16. Returns as log_mel does.");
    };
    define_fused(&run_log_mel_downsample<float, float>);
    define_fused(&run_log_mel_downsample<float, uint16_t>);
    define_fused(&run_log_mel_downsample<int16_t, float>);
    define_fused(&run_log_mel_downsample<int16_t, uint16_t>);
    // A window of 0 is one of factor frames.
    const auto define_downsample = [&](auto forward, auto backward) {
        module.def("downsample", forward, array("frames"), array("cu_frames"), array("cu_rows"), py::arg("factor"),
                   py::arg("mode"), array("out"), py::arg("dtype") = "float32", py::arg("window") = 0,
                   py::arg("lead") = 0, py::arg("repeat") = false, py::arg("simd") = "",
                   "Ragged frames into out: float32, or uint16 for the bits of the dtype bfloat16 or float16.");
        module.def("downsample_backward", backward, array("d_out"), array("frames"), array("cu_frames"),
                   array("cu_rows"), py::arg("factor"), py::arg("mode"), array("d_frames"), py::arg("dtype") = "float32",
                   py::arg("window") = 0, py::arg("lead") = 0, py::arg("repeat") = false,
                   "Gradient of downsample into d_frames; only max reads frames.");
    };
    define_downsample(&run_downsample<float>, &run_downsample_backward<float>);
    define_downsample(&run_downsample<uint16_t>, &run_downsample_backward<uint16_t>);
    define_rows(module);
    define_decode(module);
}
