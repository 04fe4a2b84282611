// Activations s(a), with their derivatives as functions of the value s.
#pragma once

#include "math/constants.hpp"
#include "math/inline.hpp"

namespace kjko::KJKO_LEVEL {

struct Tanh {
    template <class Real>
    KJKO_MATH Real value(Real a) {
        return tanh_of(a);
    }
    // s'
    template <class Real>
    KJKO_MATH Real slope(Real s) {
        return 1.0f - s * s;
    }
    // s''/s' times a gradient. s'' is BEND s s'.
    static constexpr bool curved = true;
    static constexpr float BEND = -2.0f;
    template <class Real>
    KJKO_MATH Real bend(Real s, Real gradient) {
        return BEND * s * gradient;
    }
};

struct LeakyRelu {
    template <class Real>
    KJKO_MATH Real value(Real a) {
        return a > 0.0f ? a : in_precision_of(a, LEAKY_SLOPE) * a;
    }
    template <class Real>
    KJKO_MATH Real slope(Real s) {
        const Real steep = 1.0f - Real{}, leaky = in_precision_of(s, LEAKY_SLOPE) - Real{};
        return s > 0.0f ? steep : leaky;
    }
    static constexpr bool curved = false;
    static constexpr float BEND = 0.0f;
};

// The gradient with respect to a, from those with respect to s and to the slope s' of tangents.
template <class Activation, class Real>
KJKO_MATH Real gradient_before(Real s, Real gradient, Real slope_gradient) {
    if constexpr (Activation::curved) gradient += Activation::bend(s, slope_gradient);
    return gradient * Activation::slope(s);
}

}  // namespace kjko::KJKO_LEVEL
