// The gradient with respect to all parameters, in the order of torch: w1, b1, w2, b2, w3, b3, skip. Rows are outputs.
#pragma once

#include "math/inline.hpp"
#include "math/network.hpp"

namespace kjko::KJKO_LEVEL {

// Where each part begins, and the size of all parts together.
struct ParameterPlaces {
    int w1, b1, w2, b2, w3, b3, skip, count;
};

template <class Real>
KJKO_MATH ParameterPlaces places_of(const NetworkOf<Real> &n) {
    ParameterPlaces at{};
    at.b1 = at.w1 + n.width * n.inputs;
    at.w2 = at.b1 + n.width;
    at.b2 = at.w2 + n.width * n.width;
    at.w3 = at.b2 + n.width;
    at.b3 = at.w3 + n.velocity_dims * n.width;
    at.skip = at.b3 + n.velocity_dims;
    at.count = at.skip + (n.skip ? n.velocity_dims * n.skipped : 0);
    return at;
}

}  // namespace kjko::KJKO_LEVEL
