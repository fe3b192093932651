"""A quicker GroupNorm for channels-last tensors on the CPU: 4 passes over memory in all, no copies. Optional; same weights, same results."""
import os
import torch

SOURCE = r"""
#include <torch/extension.h>
#include <ATen/Parallel.h>
#include <cstring>
#include <vector>
typedef uint16_t bf;
static inline float up(bf v) { uint32_t u = (uint32_t)v << 16; float f; std::memcpy(&f, &u, 4); return f; }
static inline float up(float v) { return v; }
static inline void down(float f, bf &o) { uint32_t u; std::memcpy(&u, &f, 4); o = (bf)((u + 0x7fff + ((u >> 16) & 1)) >> 16); }
static inline void down(float f, float &o) { o = f; }

template <class T> static void forward(const T *x, T *y, const float *w, const float *b, float *mean, float *rstd, int64_t N, int64_t C, int64_t S, int64_t G, float eps) {
  at::parallel_for(0, N, 1, [&](int64_t n0, int64_t n1) {
    std::vector<float> p(C), q(C);
    for (int64_t n = n0; n < n1; n++) {
      const T *xn = x + n * S * C; T *yn = y + n * S * C; float *P = p.data(), *Q = q.data(); int64_t D = C / G;
      std::fill(p.begin(), p.end(), 0.f); std::fill(q.begin(), q.end(), 0.f);
      for (int64_t s = 0; s < S; s++) { const T *r = xn + s * C; for (int64_t c = 0; c < C; c++) { float v = up(r[c]); P[c] += v; Q[c] += v * v; } }
      for (int64_t g = 0; g < G; g++) {
        double a = 0, d = 0; for (int64_t c = g * D; c < (g + 1) * D; c++) { a += P[c]; d += Q[c]; }
        double m = a / (S * D), v = d / (S * D) - m * m; float k = 1.f / std::sqrt((float)(v > 0 ? v : 0) + eps);
        mean[n * G + g] = m; rstd[n * G + g] = k;
        for (int64_t c = g * D; c < (g + 1) * D; c++) { P[c] = k * w[c]; Q[c] = b[c] - (float)m * k * w[c]; }
      }
      for (int64_t s = 0; s < S; s++) { const T *r = xn + s * C; T *o = yn + s * C; for (int64_t c = 0; c < C; c++) down(up(r[c]) * P[c] + Q[c], o[c]); }
    }
  });
}

template <class T> static void backward(const T *dy, const T *x, T *dx, const float *w, const float *mean, const float *rstd, float *dw, float *db, int64_t N, int64_t C, int64_t S, int64_t G) {
  at::parallel_for(0, N, 1, [&](int64_t n0, int64_t n1) {
    std::vector<float> p(C), q(C), r(C);
    for (int64_t n = n0; n < n1; n++) {
      const T *xn = x + n * S * C, *yn = dy + n * S * C; T *on = dx + n * S * C; float *P = p.data(), *Q = q.data(), *R = r.data(); int64_t D = C / G;
      std::fill(p.begin(), p.end(), 0.f); std::fill(q.begin(), q.end(), 0.f);
      for (int64_t s = 0; s < S; s++) { const T *a = xn + s * C, *g = yn + s * C; for (int64_t c = 0; c < C; c++) { float d = up(g[c]); P[c] += d; Q[c] += d * up(a[c]); } }
      for (int64_t g = 0; g < G; g++) {
        float m = mean[n * G + g], k = rstd[n * G + g]; double a = 0, d = 0;
        for (int64_t c = g * D; c < (g + 1) * D; c++) { a += w[c] * P[c]; d += w[c] * Q[c]; db[n * C + c] = P[c]; dw[n * C + c] = (Q[c] - m * P[c]) * k; }
        float h = (float)(-(d - a * m) * k * k * k / (S * D)), o = (float)(-h * m - a * k / (S * D));
        for (int64_t c = g * D; c < (g + 1) * D; c++) { P[c] = w[c] * k; Q[c] = h; R[c] = o; }
      }
      for (int64_t s = 0; s < S; s++) { const T *a = xn + s * C, *g = yn + s * C; T *o = on + s * C; for (int64_t c = 0; c < C; c++) down(up(g[c]) * P[c] + up(a[c]) * Q[c] + R[c], o[c]); }
    }
  });
}

std::vector<at::Tensor> gn_forward(at::Tensor x, at::Tensor w, at::Tensor b, int64_t G, double eps) {
  int64_t N = x.size(0), C = x.size(1), S = x.numel() / (N * C); auto y = at::empty_like(x), m = at::empty({N, G}, w.options()), k = at::empty({N, G}, w.options());
  if (x.scalar_type() == at::kBFloat16) forward((bf *)x.data_ptr(), (bf *)y.data_ptr(), w.data_ptr<float>(), b.data_ptr<float>(), m.data_ptr<float>(), k.data_ptr<float>(), N, C, S, G, eps);
  else forward(x.data_ptr<float>(), y.data_ptr<float>(), w.data_ptr<float>(), b.data_ptr<float>(), m.data_ptr<float>(), k.data_ptr<float>(), N, C, S, G, eps);
  return {y, m, k};
}
std::vector<at::Tensor> gn_backward(at::Tensor dy, at::Tensor x, at::Tensor w, at::Tensor m, at::Tensor k) {
  int64_t N = x.size(0), C = x.size(1), S = x.numel() / (N * C), G = m.size(1); auto dx = at::empty_like(x), dw = at::empty({N, C}, w.options()), db = at::empty({N, C}, w.options());
  if (x.scalar_type() == at::kBFloat16) backward((bf *)dy.data_ptr(), (bf *)x.data_ptr(), (bf *)dx.data_ptr(), w.data_ptr<float>(), m.data_ptr<float>(), k.data_ptr<float>(), dw.data_ptr<float>(), db.data_ptr<float>(), N, C, S, G);
  else backward(dy.data_ptr<float>(), x.data_ptr<float>(), dx.data_ptr<float>(), w.data_ptr<float>(), m.data_ptr<float>(), k.data_ptr<float>(), dw.data_ptr<float>(), db.data_ptr<float>(), N, C, S, G);
  return {dx, dw.sum(0), db.sum(0)};
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("gn_forward", &gn_forward); m.def("gn_backward", &gn_backward); }
"""


def install():
    """Puts the quick kernel behind torch.nn.GroupNorm; leaves everything as it was where it cannot be built."""
    try:
        from torch.utils.cpp_extension import load_inline
        os.environ["PATH"] = os.path.dirname(os.sys.executable) + ":" + os.environ["PATH"]
        kernel = load_inline("fast_norm", SOURCE, extra_cflags=["-O3", "-march=native", "-ffast-math"])
    except Exception as e: return print("GroupNorm stays torch's own:", str(e)[:200])

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w, b, groups, eps):
            y, m, k = kernel.gn_forward(x, w, b, groups, eps); ctx.save_for_backward(x, w, m, k)
            return y

        @staticmethod
        def backward(ctx, dy):
            x, w, m, k = ctx.saved_tensors
            dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last) if x.ndim == 4 else dy
            return *kernel.gn_backward(dy, x, w, m, k), None, None

    slow = torch.nn.GroupNorm.forward

    def forward(self, x):
        if x.ndim == 4 and self.weight.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last): return Norm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return slow(self, x)
    torch.nn.GroupNorm.forward = forward
