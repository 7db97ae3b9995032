#include "esl/norm_lif.h"

#include <algorithm>
#include <tuple>

#include "bindings.h"

namespace esl {
namespace {

// Groups of arguments, each a tuple in Python; their order is that of the structs.
using ShapeTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;  // T, B, height, width, channels
using NeuronTuple = std::tuple<float, float, bool, float>;                   // tau, v_threshold, hard_reset, v_reset
using CurrentTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t>;            // panel, a, b
using ResidualTuple = std::tuple<uintptr_t, int, float>;                     // words, planes, scale
// mean, rstd, batch_stats, grad_current, grad_gamma, grad_beta
using NormTuple = std::tuple<uintptr_t, uintptr_t, bool, uintptr_t, uintptr_t, uintptr_t>;

AffineCurrent current(const CurrentTuple& c) {
  return {at<const float>(std::get<0>(c)), at<const float>(std::get<1>(c)), at<const float>(std::get<2>(c))};
}

NormLifInput input(const ShapeTuple& s, const NeuronTuple& n, const CurrentTuple& first, const CurrentTuple& second,
                   const ResidualTuple& r, int threads) {
  return {{{std::get<0>(s), std::get<1>(s)}, std::get<2>(s), std::get<3>(s), std::get<4>(s)},
          {std::get<0>(n), std::get<1>(n), std::get<2>(n), std::get<3>(n)},
          {current(first), current(second)},
          at<const uint64_t>(std::get<0>(r)),
          std::get<1>(r),
          std::get<2>(r),
          threads};
}

NormGradient norm(const NormTuple& n) {
  return {at<const float>(std::get<0>(n)), at<const float>(std::get<1>(n)), std::get<2>(n),
          at<float>(std::get<3>(n)),       at<float>(std::get<4>(n)),       at<float>(std::get<5>(n))};
}

}  // namespace

void bind_norm_lif(py::module_& m) {
  m.def("norm_lif_forward",
        [](const ShapeTuple& shape, const NeuronTuple& neuron, const CurrentTuple& first, const CurrentTuple& second,
           const ResidualTuple& residual, int threads, uintptr_t words) {
          const NormLifForward p{input(shape, neuron, first, second, residual, threads), at<uint64_t>(words)};
          py::gil_scoped_release release;
          ESL_DISPATCH(norm_lif_forward, p);
        });
  // Returns the doubles of scratch that are needed (never 0: an empty tensor has no address) if `scratch` is null,
  // else 0 when done.
  m.def("norm_lif_backward",
        [](const ShapeTuple& shape, const NeuronTuple& neuron, const CurrentTuple& first, const CurrentTuple& second,
           const ResidualTuple& residual, int threads, int surrogate, float width, bool detach_reset, uintptr_t words,
           uintptr_t grad, int64_t pool, const NormTuple& first_norm, const NormTuple& second_norm,
           uintptr_t grad_residual, uintptr_t grad_tau, uintptr_t scratch) -> int64_t {
          const NormLifBackward p{input(shape, neuron, first, second, residual, threads),
                                  static_cast<Surrogate>(surrogate),
                                  width,
                                  detach_reset,
                                  at<const uint64_t>(words),
                                  at<const float>(grad),
                                  pool,
                                  {norm(first_norm), norm(second_norm)},
                                  at<float>(grad_residual),
                                  at<double>(grad_tau),
                                  at<double>(scratch)};
          py::gil_scoped_release release;
          if (!scratch) return std::max<int64_t>(1, ESL_DISPATCH(norm_lif_backward_scratch, p));
          ESL_DISPATCH(norm_lif_backward, p);
          return 0;
        });
}

}  // namespace esl
