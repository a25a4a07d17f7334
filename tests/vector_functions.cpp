// Applies the functions over vectors to arrays. test_vector_functions.py compiles this once for
// each ISA level.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// GCC takes the undefined operands inside its own intrinsics for ours (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include "cpu/kernels_common.h"

namespace rnn_ext::cpu {
namespace {

#if defined(__AVX512F__)
#include "cpu/vector_avx512.h"
#elif defined(__AVX2__)
#include "cpu/vector_avx2.h"
#else
#include "cpu/vector_generic.h"
#endif

#include "cpu/arithmetic.inl"
#include "cpu/functions.inl"
#include "cpu/tanh.inl"

template <class T, class F>
void apply(const T* a, const T* b, const T* c, T* out, std::int64_t count) {
  using V = Vector<T>;
  std::int64_t i = 0;
  for (; i + V::width <= count; i += V::width) {
    F{}(V::load(a + i), V::load(b + i), V::load(c + i)).store(out + i);
  }
  if (const int rest = static_cast<int>(count - i); rest > 0) {
    F{}(V::load(a + i, rest), V::load(b + i, rest), V::load(c + i, rest)).store(out + i, rest);
  }
}

struct Function {
  const char* name;
  void (*f32)(const float*, const float*, const float*, float*, std::int64_t);
  void (*f64)(const double*, const double*, const double*, double*, std::int64_t);

  template <class F>
  constexpr Function(const char* name, F)
      : name(name), f32(apply<float, F>), f64(apply<double, F>) {}
};

constexpr Function functions[] = {
    {"abs", [](auto a, auto, auto) { return magnitude(a); }},
    {"ceil", [](auto a, auto, auto) { return ceil(a); }},
    {"cos", [](auto a, auto, auto) { return cos(a); }},
    {"eq", [](auto a, auto b, auto) { return equal(a, b); }},
    {"erf", [](auto a, auto, auto) { return erf(a); }},
    {"exp", [](auto a, auto, auto) { return exp(a); }},
    {"expm1", [](auto a, auto, auto) { return expm1(a); }},
    {"floor", [](auto a, auto, auto) { return floor(a); }},
    {"le", [](auto a, auto b, auto) { return less_equal(a, b); }},
    {"log", [](auto a, auto, auto) { return log(a); }},
    {"log1p", [](auto a, auto, auto) { return log1p(a); }},
    {"lt", [](auto a, auto b, auto) { return less(a, b); }},
    {"maximum", [](auto a, auto b, auto) { return maximum(a, b); }},
    {"minimum", [](auto a, auto b, auto) { return minimum(a, b); }},
    {"ne", [](auto a, auto b, auto) { return not_equal(a, b); }},
    {"neg", [](auto a, auto, auto) { return -a; }},
    {"reciprocal", [](auto a, auto, auto) { return reciprocal(a); }},
    {"round", [](auto a, auto, auto) { return round(a); }},
    {"rsqrt", [](auto a, auto, auto) { return rsqrt(a); }},
    {"sigmoid", [](auto a, auto, auto) { return sigmoid(a); }},
    {"sign", [](auto a, auto, auto) { return sign(a); }},
    {"sin", [](auto a, auto, auto) { return sin(a); }},
    {"sqrt", [](auto a, auto, auto) { return square_root(a); }},
    {"tanh", [](auto a, auto, auto) { return tanh(a); }},
    {"trunc", [](auto a, auto, auto) { return trunc(a); }},
    {"where", [](auto a, auto b, auto c) { return select(a, b, c); }},
};

template <class T>
void call(const char* name, const T* a, const T* b, const T* c, T* out, std::int64_t count) {
  const auto is_it = [&](const Function& f) { return std::strcmp(f.name, name) == 0; };
  const Function& f = *std::find_if(std::begin(functions), std::end(functions), is_it);
  if constexpr (sizeof(T) == 4) {
    f.f32(a, b, c, out, count);
  } else {
    f.f64(a, b, c, out, count);
  }
}

}  // namespace
}  // namespace rnn_ext::cpu

// out = name(a, b, c), elementwise.
extern "C" void apply_float(const char* name, const float* a, const float* b, const float* c,
                            float* out, std::int64_t count) {
  rnn_ext::cpu::call(name, a, b, c, out, count);
}
extern "C" void apply_double(const char* name, const double* a, const double* b, const double* c,
                             double* out, std::int64_t count) {
  rnn_ext::cpu::call(name, a, b, c, out, count);
}
