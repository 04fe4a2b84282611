// tanh as a rational function, of a number or of a vector: on GPUs, and on CPUs without AVX-512 (cpu/tanh.hpp).
#pragma once

#include "math/inline.hpp"

namespace kjko::KJKO_LEVEL {

// From here on tanh is 1 in single precision.
constexpr float TANH_END = 8.2f;

// tanh x = numerator / denominator to 3e-7 for |x| ≤ TANH_END: the minimax approximation x P(x²)/Q(x²).
template <class Real>
KJKO_MATH void rational_tanh(Real x, Real &numerator, Real &denominator) {
    const Real y = x * x;
    Real p = y * 1.4671200159071466e-08f + 2.1512542063730758e-05f;
    Real q = y * 8.30065706585666e-07f + 0.00033738992689722055f;
    p = p * y + 0.0035489382551319166f;
    q = q * y + 0.02607860434607252f;
    p = p * y + 0.1342552532458042f;
    q = q * y + 0.4675884285344451f;
    p = p * y + 0.9999999616267651f;
    q = q * y + 1.0f;
    numerator = x * p;
    denominator = q;
}

}  // namespace kjko::KJKO_LEVEL
