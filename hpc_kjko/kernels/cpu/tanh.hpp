// tanh for AVX-512: 32 polynomials of degree 4 in |x|, with an error of 2.4e-7.
//
// One instruction looks a coefficient up in two registers, and there is no division. So tanh takes 13 instructions. The
// rational function of math/rational.hpp takes 18. Polynomial k is for |x| nearest to k / TANH_STEPS. Its coefficients
// minimise the largest error there. The first polynomial is 0 at 0 and minimises the largest relative error. The
// highest coefficient is rounded to single precision first. Then the lower ones are fitted again, and so on.
#pragma once

#include <immintrin.h>  // always_inline functions only

namespace kjko::KJKO_LEVEL {

// The last polynomial ends at TANH_TABLE_END. Beyond it tanh is constant, and 1 to 2.4e-7.
constexpr float TANH_TABLE_END = 8.0f, TANH_STEPS = 3.934999942779541f;

alignas(64) static constexpr float TANH_TABLE[5][32] = {
    {0.0f, 6.08201626e-05f, 3.86637257e-05f, -0.0120801777f, -0.0562844463f, -0.119042188f, -0.156975225f,
     -0.138342232f, -0.0608227775f, 0.0583552532f, 0.197187826f, 0.337529987f, 0.467595816f, 0.58129859f,
     0.676621258f, 0.754054964f, 0.815419853f, 0.863083839f, 0.899489999f, 0.926901877f, 0.94728595f,
     0.962278187f, 0.973197043f, 0.981079221f, 0.98672384f, 0.990736485f, 0.993569911f, 0.995558381f,
     0.996945798f, 0.997908831f, 0.998573899f, 0.999031067f},
    {0.999999762f, 0.998559177f, 0.997549713f, 1.07095814f, 1.26917148f, 1.49081314f, 1.60201919f, 1.55865145f,
     1.3966645f, 1.17598557f, 0.945651531f, 0.734873235f, 0.556478322f, 0.41299516f, 0.301618457f, 0.217387661f,
     0.154946893f, 0.109390073f, 0.0765841007f, 0.0532198064f, 0.0367377289f, 0.0252074394f, 0.0172009971f,
     0.0116784321f, 0.00789210293f, 0.00531045301f, 0.00355903851f, 0.00237638061f, 0.00158122391f,
     0.00104869087f, 0.000693387527f, 0.000457164919f},
    {6.69244982e-05f, 0.0133117409f, 0.0224725474f, -0.145299435f, -0.479988962f, -0.77427268f, -0.896687448f,
     -0.858860731f, -0.731814325f, -0.578470111f, -0.435084224f, -0.316316098f, -0.224524379f, -0.156603023f,
     -0.107788689f, -0.0734210238f, -0.0495901033f, -0.0332584269f, -0.0221708808f, -0.0147018749f,
     -0.00970356539f, -0.00637774728f, -0.00417592563f, -0.00272478093f, -0.00177225657f, -0.00114933751f,
     -0.000743337441f, -0.00047954102f, -0.000308635819f, -0.000198198017f, -0.000127015199f, -8.12429353e-05f},
    {-0.335977495f, -0.393881619f, -0.419775277f, -0.248226419f, 0.00400029169f, 0.178092062f, 0.238056555f,
     0.22340329f, 0.17907846f, 0.131686777f, 0.0919930637f, 0.0622356199f, 0.0412359796f, 0.0269413497f,
     0.0174300298f, 0.0111962259f, 0.00715303747f, 0.00455043465f, 0.00288469018f, 0.00182334741f, 0.00114957918f,
     0.000723169127f, 0.00045402153f, 0.000284532289f, 0.00017802199f, 0.000111215195f, 6.93825787e-05f,
     4.32291999e-05f, 2.69022585e-05f, 1.67225826e-05f, 1.03839729e-05f, 6.44189913e-06f},
    {0.0334971212f, 0.138353899f, 0.162518263f, 0.0962747484f, 0.0246957503f, -0.0140188094f, -0.0250467993f,
     -0.0229198653f, -0.0171155632f, -0.0116191627f, -0.00749612972f, -0.00469891541f, -0.00289664278f,
     -0.00176811137f, -0.00107294647f, -0.000648821821f, -0.000391526934f, -0.000235966858f, -0.00014210584f,
     -8.55412291e-05f, -5.14778549e-05f, -3.09737588e-05f, -1.86348061e-05f, -1.12106227e-05f, -6.7440069e-06f,
     -4.056943e-06f, -2.44046646e-06f, -1.4680561e-06f, -8.83111056e-07f, -5.31219541e-07f, -3.1954454e-07f,
     -1.92222885e-07f},
};

static inline __attribute__((always_inline)) __m512 tanh_by_table(__m512 x) {
    const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
    const __m512 end = _mm512_set1_ps(TANH_TABLE_END);
    // NaN stays NaN, because it is the second operand of a minimum.
    const __m512 size = _mm512_castsi512_ps(_mm512_andnot_si512(sign, _mm512_castps_si512(x)));
    const __m512 a = _mm512_maskz_min_ps(0xffff, end, size);
    // The last bits of the sum are the nearest whole number. A look-up uses five of them.
    const __m512i nearest =
        _mm512_castps_si512(_mm512_fmadd_ps(a, _mm512_set1_ps(TANH_STEPS), _mm512_set1_ps(0x1p23f)));
    const auto coefficient = [nearest](int power) __attribute__((always_inline)) {
        return _mm512_permutex2var_ps(_mm512_load_ps(TANH_TABLE[power]), nearest, _mm512_load_ps(TANH_TABLE[power] + 16));
    };
    __m512 sum = coefficient(4);
    for (int power = 3; power >= 0; --power) sum = _mm512_fmadd_ps(sum, a, coefficient(power));
    // Gives the sum, which is not negative, the sign of x: sum | (x & sign).
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(_mm512_castps_si512(sum), _mm512_castps_si512(x), sign, 0xf8));
}

}  // namespace kjko::KJKO_LEVEL
