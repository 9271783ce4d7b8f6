// |X[k]|^2 of LANES real frames of 400 samples as 20 x 20, part of one instruction set's namespace.
//
// With n = 20 a + b and k = c + 20 d: X[k] = sum_b w20^(b d) w400^(b c) sum_a x[n] w20^(a c). The inner sums are of
// real numbers, so c runs to 10 only: the mirrored bins are conjugates, and power does not tell them apart. Each sum of
// 20 is 4 x 5 by the Chinese remainder theorem (Good and Thomas), which needs no factors between the two.

// Samples of a group of four b lie COLUMN floats apart, with two more frames behind the LANES for the overlap.
constexpr int COLUMN = 2 * LANES;
constexpr int HOP_400 = 160;  // 8 rows of 20: frame l + 1 holds the rows of frame l eight further up

ALWAYS_INLINE Complex conjugate(Complex a) { return {a.re, -a.im}; }

ALWAYS_INLINE void real_dft5(const Vec* x, Vec& y0, Complex& y1, Complex& y2) {
    constexpr float c1 = 0.309016994374947424f, c2 = -0.809016994374947424f;  // cos(2 pi / 5), cos(4 pi / 5)
    constexpr float s1 = 0.951056516295153572f, s2 = 0.587785252292473129f;   // sin of the same
    const Vec a = x[1] + x[4], b = x[2] + x[3], c = x[4] - x[1], d = x[3] - x[2];
    y0 = x[0] + a + b;
    y1 = {x[0] + c1 * a + c2 * b, s1 * c + s2 * d};
    y2 = {x[0] + c2 * a + c1 * b, s2 * c - s1 * d};
}

// Bins 0 to 10 of 20 real samples; y[0] and y[10] are real.
ALWAYS_INLINE void real_dft20(const Vec* x, Complex* y) {
    Vec even[5], odd[5];
    Complex quarter[5];
    UNROLL for (int b = 0; b < 5; ++b) {
        const Vec p = x[4 * b], q = x[(4 * b + 5) % 20], r = x[(4 * b + 10) % 20], s = x[(4 * b + 15) % 20];
        const Vec pr = p + r, qs = q + s;
        even[b] = pr + qs;
        odd[b] = pr - qs;
        quarter[b] = {p - r, s - q};
    }
    Complex bin16, bin12;
    real_dft5(even, y[0].re, bin16, bin12);
    y[4] = conjugate(bin16);
    y[8] = conjugate(bin12);
    real_dft5(odd, y[10].re, y[6], y[2]);
    y[0].im = y[10].im = Vec{};
    Butterfly<5>::run(quarter);
    y[5] = quarter[0];
    y[1] = quarter[1];
    y[3] = conjugate(quarter[2]);
    y[7] = conjugate(quarter[3]);
    y[9] = quarter[4];
}

// Bin (5 i + 16 j) % 20 of 20 samples goes to y[i][j].
ALWAYS_INLINE void dft20(const Complex* x, Complex (*y)[5]) {
    UNROLL for (int j = 0; j < 5; ++j) {
        Complex q[4] = {x[4 * j], x[(4 * j + 5) % 20], x[(4 * j + 10) % 20], x[(4 * j + 15) % 20]};
        Butterfly<4>::run(q);
        UNROLL for (int i = 0; i < 4; ++i) y[i][j] = q[i];
    }
    UNROLL for (int i = 0; i < 4; ++i) Butterfly<5>::run(y[i]);
}

ALWAYS_INLINE Vec power_of(Complex x) { return x.re * x.re + x.im * x.im; }

// Samples b to b + 3 of every row of 20, one column for each of the four times `rows` rows.
void load_any(const float* const* frames, int b, float* into) {
    for (int a = 0; a < 20; ++a)
        for (int at = 0; at < LANES; at += W) {
            Vec x[4];
            columns(frames + at, 20 * a + b, x);
            UNROLL for (int i = 0; i < 4; ++i) store(into + (i * 20 + a) * COLUMN + at, x[i]);
        }
}

// The same of frames HOP_400 apart: rows 8 to 19 are those of the next two frames, one and two lanes further on.
void load_spaced(const float* first, int b, float* into) {
    const float* frames[LANES];
    UNROLL for (int l = 0; l < LANES; ++l) frames[l] = first + HOP_400 * l;
    for (int a = 0; a < 8; ++a) {
        const int64_t n = 20 * a + b;
        for (int at = 0; at < LANES; at += W) {
            Vec x[4];
            columns(frames + at, n, x);
            UNROLL for (int i = 0; i < 4; ++i) store(into + (i * 8 + a) * COLUMN + at, x[i]);
        }
        // The last frame ends in the fourth row of the second one behind it.
        const float *next = first + HOP_400 * LANES + n, *second = a < 4 ? next + HOP_400 : next;
        Four y[4] = {load_four(next), load_four(second), load_four(next), load_four(second)};
        transpose_four(y);
        UNROLL for (int i = 0; i < 4; ++i) store_four(into + (i * 8 + a) * COLUMN + LANES, y[i]);
    }
}

// The next block's samples come from memory while this one is computed, a few lines at a time: a load that finds every
// buffer of the cache busy would wait.
ALWAYS_INLINE void fetch(const float* from, int n_lines) {
    for (int line = 0; line < n_lines; ++line) __builtin_prefetch(from + 16 * line, 0, 2);
}

// The lines of a row that will be written: they would be read first, one by one.
ALWAYS_INLINE void fetch_to_write(float* row, int n) {
    for (int at = 0; at < n; at += 16) __builtin_prefetch(row + at, 1);
}

// Inner sums of four b: `sums` has (11, 20, re and im) lanes.
template <bool SPACED>
ALWAYS_INLINE void inner_sums(const TableView& tables, const Block& block, int b, const float* samples, float* sums) {
    constexpr int ROWS = SPACED ? 8 : 20;
    for (int i = 0; i < 4; ++i) {
        if (block.next != nullptr) fetch(block.next + 64 * (b + i), 4);
        if (!block.stream && b + i < LANES && block.out_rows[b + i] != nullptr)
            fetch_to_write(block.out_rows[b + i], tables.n_mels);
        const float *window = tables.window + b + i, *twiddle = tables.twiddle + (b + i) * 20;
        for (int at = 0; at < LANES; at += W) {
            Vec x[20];
            Complex y[11];
            UNROLL for (int a = 0; a < 20; ++a)
                x[a] = load(samples + (i * ROWS + a % ROWS) * COLUMN + a / ROWS + at) * window[20 * a];
            real_dft20(x, y);
            float* into = sums + 2 * (b + i) * LANES + at;
            store(into, y[0].re);
            UNROLL for (int c = 1; c <= 10; ++c) {
                const float re = twiddle[2 * c - 2], im = twiddle[2 * c - 1];
                const Complex turned = c == 10 ? Complex{y[c].re * re, y[c].re * im} : times(y[c], re, im);
                store(into + 40 * c * LANES, turned.re);
                store(into + 40 * c * LANES + LANES, turned.im);
            }
        }
    }
}

void outer_sums(const float* sums, const float* next, float* power) {
    for (int at = 0; at < LANES; at += W) {
        Vec x[20];
        Complex y[11];
        UNROLL for (int n = 0; n < 20; ++n) x[n] = load(sums + 2 * n * LANES + at);
        real_dft20(x, y);
        UNROLL for (int d = 0; d <= 10; ++d) store(power + 20 * d * LANES + at, power_of(y[d]));
    }
    for (int c = 1; c <= 10; ++c) {
        sums += 40 * LANES;
        if (next != nullptr) fetch(next + 1280 + 128 * (c - 1), 8);
        float *rising = power + c * LANES, *falling = power + (20 - c) * LANES;
        for (int at = 0; at < LANES; at += W) {
            Complex x[20], y[4][5];
            UNROLL for (int n = 0; n < 20; ++n) {
                const float* from = sums + 2 * n * LANES + at;
                x[n] = {load(from), load(from + LANES)};
            }
            dft20(x, y);
            UNROLL for (int i = 0; i < 4; ++i) {
                UNROLL for (int j = 0; j < 5; ++j) {
                    const int d = (5 * i + 16 * j) % 20;
                    // Bin c + 20 d, or above 200 its mirror; of c = 10 both are there.
                    if (d < 10)
                        store(rising + 20 * d * LANES + at, power_of(y[i][j]));
                    else if (c < 10)
                        store(falling + 20 * (19 - d) * LANES + at, power_of(y[i][j]));
                }
            }
        }
    }
}

// scratch: 80 columns, then 440 lanes.
void power_spectrum_400(const TableView& tables, const Block& block, float* scratch, float* power) {
    float* sums = scratch + 80 * COLUMN;
    for (int b = 0; b < 20; b += 4) {
        if (block.spaced) {
            load_spaced(block.rows[0], b, scratch);
            inner_sums<true>(tables, block, b, scratch, sums);
        } else {
            load_any(block.rows, b, scratch);
            inner_sums<false>(tables, block, b, scratch, sums);
        }
    }
    outer_sums(sums, block.next, power);
}
