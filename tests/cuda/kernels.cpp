// The CUDA kernels against sums in f64. `.ci/run kernels` compiles and runs this; the sanitizers find reads and writes beside a tensor.

#include <random>
#include <string>

#include "threads.h"

template <typename... Parameters, typename... Arguments>
static void launch(dim3 grid, void (*function)(Parameters...), Arguments... arguments) {
    launch(grid, [=] { function(arguments...); });
}

static std::mt19937 random_bits(1);
static double normal() { return std::normal_distribution<>()(random_bits); }

// Numbers on the heap, in a block that is exactly as large, so that the sanitizer sees every access beside it. `shift` numbers come before
// the first, so that it is not aligned. Each number is NaN until it is written.
template <typename T> struct Tensor {
    T *memory, *at;
    size_t count;
    explicit Tensor(size_t count, size_t shift = 0) : count(count) {
        memory = (T *)malloc((count + shift) * sizeof(T)); // aligned for vectors
        at = memory + shift;
        for (size_t i = 0; i < count; i++) narrow(NAN, at[i]);
    }
    Tensor(const Tensor &) = delete;
    ~Tensor() { free(memory); }
    Tensor &fill(double mean = 0, double deviation = 1) {
        for (size_t i = 0; i < count; i++) narrow((float)(mean + deviation * normal()), at[i]);
        return *this;
    }
    double operator[](size_t i) const { return widen(at[i]); }
};

// Half of the last place of each type, and the rounding errors of f32.
template <typename T> static double precision();
template <> double precision<f32>() { return 2e-6; }
template <> double precision<f16>() { return 1.0 / 2048 + 2e-6; }
template <> double precision<bf16>() { return 1.0 / 256 + 2e-6; }

static int failures, checks;
static double worst;
template <typename T> static void compare(const std::string &what, const Tensor<T> &found, const std::vector<double> &expected, double slack) {
    double most = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        double off = std::fabs(found[i] - expected[i]) / (precision<T>() * std::fabs(expected[i]) + slack);
        most = std::isnan(off) ? INFINITY : std::max(most, off);
    }
    checks++;
    worst = std::max(worst, most);
    if (!(most <= 1)) failures++, printf("%s: off by %g times what it may be\n", what.c_str(), most);
}

static double function_of(double x, u32 function) {
    switch (function) {
    case SILU: return x / (1 + std::exp(-x));
    case GELU: return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
    case QUICK_GELU: return x / (1 + std::exp(-1.702 * x));
    case RELU: return std::fmax(x, 0);
    default: return x;
    }
}

struct Shape {
    u32 batch, groups, per_group, pixels, shift;
    double mean, deviation;
};

// Where the moments come from: each block, parts, or the caller.
enum Way { WHOLE, PARTS, GIVEN };

template <typename T, typename Norm, typename Parts>
static void check_group_norm(const char *type, Norm norm, Parts parts_kernel, Shape s, u32 function, Way way, u32 blocks, u32 part_blocks) {
    u32 channels = s.groups * s.per_group, count = s.per_group * s.pixels, n_groups = s.batch * s.groups;
    Tensor<T> x((size_t)n_groups * count, s.shift & 1), out(x.count, s.shift >> 1), weight(channels), bias(channels);
    x.fill(s.mean, s.deviation), weight.fill(1, 0.5), bias.fill();
    float eps = 1e-5f;
    std::vector<double> expected(x.count);
    std::vector<Moments> parts(way == WHOLE ? 0 : way == GIVEN ? n_groups : n_groups * part_blocks);
    for (u32 group = 0; group < n_groups; group++) {
        double mean = 0, variance = 0;
        for (u32 i = 0; i < count; i++) mean += x[(size_t)group * count + i] / count;
        for (u32 i = 0; i < count; i++) variance += std::pow(x[(size_t)group * count + i] - mean, 2) / count;
        if (way == GIVEN) {
            mean += 0.5 * s.deviation, variance *= 2;
            parts[group] = {1, (float)mean, (float)variance};
        }
        for (u32 i = 0; i < count; i++) {
            u32 channel = group % s.groups * s.per_group + i / s.pixels;
            double normed = (x[(size_t)group * count + i] - mean) / std::sqrt(variance + eps);
            expected[(size_t)group * count + i] = function_of(normed * weight[channel] + bias[channel], function);
        }
    }
    if (way == PARTS) launch({n_groups, part_blocks}, parts_kernel, x.at, parts.data(), count);
    u32 n_parts = parts.size() / n_groups;
    launch({n_groups, blocks}, norm, x.at, out.at, weight.at, bias.at, parts.data(), count, s.pixels, s.groups, n_parts, eps, function);
    char what[200];
    snprintf(what, sizeof what, "group_norm_%s of %u x %u groups x %u channels x %u pixels from %u, mean %g, function %u, way %d, blocks %u, %u",
             type, s.batch, s.groups, s.per_group, s.pixels, s.shift, s.mean, function, way, blocks, part_blocks);
    // A mean in f32 is off by its last place: this much in units of the deviation.
    compare(what, out, expected, 4e-6 + 6e-7 * std::fabs(s.mean) / std::hypot(s.deviation, std::sqrt(eps)));
}

template <typename T, typename Add>
static void check_add(const char *type, Add add, u32 batch, u32 each, u32 channels, u32 pixels, u32 shift, u32 function, u32 which, u32 blocks) {
    u32 samples = batch / each, count = batch * channels * pixels;
    Tensor<T> x(count, shift), bias(channels), sample_bias(samples * channels), residual(count, which & 8 ? 1 : shift);
    x.fill(), bias.fill(), sample_bias.fill(), residual.fill();
    std::vector<double> expected(count);
    for (u32 i = 0; i < count; i++) {
        u32 channel = i / pixels % channels, sample = i / pixels / channels / each;
        double sum = x[i] + (which & 1 ? bias[channel] : 0) + (which & 2 ? sample_bias[sample * channels + channel] : 0) + (which & 4 ? residual[i] : 0);
        expected[i] = function_of(sum, function);
    }
    launch({blocks}, add, x.at, which & 1 ? bias.at : nullptr, which & 2 ? sample_bias.at : nullptr, which & 4 ? residual.at : nullptr, count,
           channels, pixels, each * channels * pixels, function);
    char what[200];
    snprintf(what, sizeof what, "add_%s to %u (%u each) x %u channels x %u pixels from %u, function %u, added %u, blocks %u", type, batch, each,
             channels, pixels, shift, function, which, blocks);
    compare(what, x, expected, 2e-6);
}

template <typename T, typename Geglu> static void check_geglu(const char *type, Geglu geglu, u32 rows, u32 columns, u32 shift, u32 blocks) {
    Tensor<T> x((size_t)rows * 2 * columns, shift & 1), bias(2 * columns), out((size_t)rows * columns, shift >> 1);
    x.fill(0, 2), bias.fill();
    std::vector<double> expected(out.count);
    for (u32 row = 0; row < rows; row++)
        for (u32 i = 0; i < columns; i++) {
            size_t from = (size_t)row * 2 * columns + i;
            expected[row * columns + i] = (x[from] + bias[i]) * function_of(x[from + columns] + bias[columns + i], GELU);
        }
    launch({blocks}, geglu, x.at, out.at, bias.at, rows * columns, columns);
    char what[200];
    snprintf(what, sizeof what, "geglu_%s of %u rows x %u columns from %u, blocks %u", type, rows, columns, shift, blocks);
    compare(what, out, expected, 4e-6);
}

template <typename T, typename Transpose> static void check_transpose(const char *type, Transpose transpose, u32 batch, u32 rows, u32 columns) {
    Tensor<T> x((size_t)batch * rows * columns), out(x.count);
    x.fill();
    std::vector<double> expected(x.count);
    for (u32 b = 0; b < batch; b++)
        for (u32 row = 0; row < rows; row++)
            for (u32 column = 0; column < columns; column++) expected[(b * columns + column) * rows + row] = x[(b * rows + row) * columns + column];
    launch({(columns + TILE - 1) / TILE, (rows + TILE - 1) / TILE, batch}, transpose, x.at, out.at, rows, columns);
    char what[200];
    snprintf(what, sizeof what, "transpose_%s of %u x %u x %u", type, batch, rows, columns);
    checks++;
    for (size_t i = 0; i < expected.size(); i++)
        if (out[i] != expected[i]) return failures++, void(printf("%s: differs\n", what));
}

struct Rows {
    u32 rows, columns, shift, blocks;
};

#define CHECK(T)                                                                                                                           \
    for (Shape s : shapes) {                                                                                                               \
        check_group_norm<T>(#T, group_norm_##T, group_norm_parts_##T, s, SILU, WHOLE, 1, 0);                                               \
        check_group_norm<T>(#T, group_norm_##T, group_norm_parts_##T, s, NONE, PARTS, 2, 3);                                               \
        check_group_norm<T>(#T, group_norm_##T, group_norm_parts_##T, s, SILU, GIVEN, 2, 0);                                               \
    }                                                                                                                                      \
    check_group_norm<T>(#T, group_norm_##T, group_norm_parts_##T, {1, 1, 2, 2400, 0, 0, 1}, NONE, PARTS, 1, 600);                           \
    for (u32 which = 0; which < 16; which++) {                                                                                             \
        u32 function = (which ^ which >> 2) % 5;                                                                                           \
        check_add<T>(#T, add_##T, 3, 1, 40, 16, 0, function, which, 1);                                                                    \
        check_add<T>(#T, add_##T, 4, 2, 5, 7, 0, function, which, 1);                                                                      \
        check_add<T>(#T, add_##T, 77, 77, 24, 1, 0, function, which, 1);                                                                   \
        check_add<T>(#T, add_##T, 5, 5, 13, 1, 1, function, which, 2);                                                                     \
        check_add<T>(#T, add_##T, 2, 1, 16, 1000, 3, function, which, 3);                                                                  \
    }                                                                                                                                      \
    for (Rows r : std::vector<Rows>{{1, 1, 0, 1}, {77, 24, 0, 1}, {9, 13, 0, 2}, {64, 160, 1, 3}, {64, 160, 2, 2}, {64, 160, 0, 2}})                        \
        check_geglu<T>(#T, geglu_##T, r.rows, r.columns, r.shift, r.blocks);                                                               \
    for (Rows r : std::vector<Rows>{{1, 1, 0, 1}, {33, 31, 0, 2}, {64, 96, 0, 3}, {5, 100, 0, 1}, {100, 7, 0, 2}})                         \
        check_transpose<T>(#T, transpose_##T, r.blocks, r.rows, r.columns);

// A number of 16 bits is rounded to itself, and what lies between two of them to the nearer one, or halfway to the even one.
template <typename T> static void check_rounding(const char *type, u16 infinity) {
    auto rounded = [](float x) {
        T out;
        narrow(x, out);
        return out.bits;
    };
    bool right = true;
    for (u16 bits = 0; bits < infinity; bits++) {
        double here = widen(T{bits}), next = bits + 1 < infinity ? widen(T{(u16)(bits + 1)}) : 2 * here - widen(T{(u16)(bits - 1)});
        float middle = (float)((here + next) / 2);
        right &= rounded((float)here) == bits && rounded((float)-here) == (bits | 0x8000);
        right &= rounded(middle) == bits + bits % 2 && rounded(std::nextafter(middle, INFINITY)) == bits + 1;
        if (middle > here) right &= rounded(std::nextafter(middle, 0.0f)) == bits;
    }
    right &= rounded(INFINITY) == infinity && rounded(-INFINITY) == (infinity | 0x8000) && std::isnan(widen(T{rounded(NAN)})) &&
             std::isnan(widen(T{rounded(__uint_as_float(0x7fffffff))}));
    checks++;
    if (!right) failures++, printf("rounding to %s is wrong\n", type);
}

int main() {
    // Groups of whole vectors and not; larger than a block takes at once; one channel each; a mean far larger than the deviation.
    std::vector<Shape> shapes = {{1, 1, 1, 1, 0, 0, 1},      {3, 2, 3, 35, 0, 0, 1},    {2, 5, 1, 64, 0, 0.5, 2},   {2, 4, 10, 64, 0, 0, 1},
                                 {1, 2, 4, 2500, 0, 3, 0.5}, {1, 2, 4, 2504, 0, 3, 0.5}, {2, 3, 2, 320, 1, 0, 1}, {2, 3, 2, 320, 2, 0, 1},    {1, 1, 3, 4096, 0, -1000, 8},
                                 {1, 2, 2, 333, 0, 1000, 8}, {2, 2, 2, 64, 0, 7, 0},     {1, 8, 1, 16, 0, 0, 1e-3}, {1, 1, 2, 9000, 0, 0, 30}, {2, 2, 2, 16, 0, 1000, 1}};
    check_rounding<f16>("f16", 0x7c00);
    check_rounding<bf16>("bf16", 0x7f80);
    CHECK(f32)
    CHECK(f16)
    CHECK(bf16)
    printf("%d checks of the CUDA kernels, %d failures; the worst is off by %.3g times what it may be\n", checks, failures, worst);
    return failures > 0;
}
