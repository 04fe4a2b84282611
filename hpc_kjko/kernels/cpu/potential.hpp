// A log-density ψ and control fields ∇v Φ that are linear in coefficients (hpc_kjko/inner/potential.py): their values,
// and the sums over particles from which the coefficients are found.
#pragma once

#include "math/carry_step.hpp"
#include "math/constants.hpp"

namespace kjko {

// Functions g: the last of one or two hidden layers s(… W_1 z + b_1 …), s = tanh, then monomials (math/monomials.hpp).
// The inputs z are those made from positions, then v. Row-major, rows are outputs.
template <class Real>
struct PotentialCall {
    int layers, widths[MOST_FIELD_LAYERS];  // of the inputs and the hidden layers
    const Real *weights[MOST_FIELD_LAYERS - 1], *biases[MOST_FIELD_LAYERS - 1];
    int velocity_dims;
    bool periodic;

    long long count;
    const Real *z;  // [count, inputs]

    // For sums: the share of each particle; where the pieces begin whose sums are rounded to units, and where the last one
    // ends [pieces + 1] (unit 0 for no rounding). If a finer unit is given, a second sum has the remainders, rounded to it.
    const double *share;
    long long pieces;
    const long long *edges;
    double unit, finer;
};

// Numbers of functions: of ψ, of Φ, and those of Φ that depend on v alone; the number of y (below); and the number of
// training sums.
struct PotentialSizes {
    int density, potential, low, places, training;
};

// The bits of a particle do not depend on its place or on the other particles. Sums have the same bits on any number of
// threads.
template <class Real>
struct PotentialTable {
    PotentialSizes (*sizes)(const PotentialCall<Real> &call);
    // Size of the workspace for each thread; `sum` is how many numbers an operation adds up.
    long long (*workspace)(const PotentialCall<Real> &call, long long sum);

    // Σ c g of the functions of ψ, then v_k³/6 and v_k⁴/24, for each set of coefficients: [sets][count].
    void (*values)(const PotentialCall<Real> &call, int sets, const double *coefficients, double *values, int threads,
                   double *workspace);
    // ∇v Φ for each set of coefficients [sets][potential functions]: [sets][count, dv]; and ∇v∇v Φ for the first `bent`
    // sets: [bent][count, dv, dv].
    void (*slopes)(const PotentialCall<Real> &call, int sets, int bent, const Real *coefficients, Real *gradients,
                   Real *hessians, int threads, double *workspace);

    // Σ share g gᵀ, with Σ share g wanted as one more column [M, M + 1], for ψ.
    void (*normal)(const PotentialCall<Real> &call, const double *wanted, double *sum, int threads, double *workspace);
    // For the functions of Φ: Σ share ∇g·∇g [N, N], Σ share ∇∇g : ∇∇g [N, N], Σ share Δg [N], Σ share.
    void (*derivatives)(const PotentialCall<Real> &call, double *sum, int threads, double *workspace);
    // For Φ with coefficients k [N]: Σ share tr (I + h∇∇Φ)⁻¹∇∇g [N], Σ share log det(I + h∇∇Φ), and the number of
    // particles whose determinant is not positive. These particles are left out of the sums.
    void (*barrier)(const PotentialCall<Real> &call, const double *k, double step, double *sum, int threads,
                    double *workspace);
    // For the L functions m of Φ that depend on v alone: Σ share ∇m·(∇m, v, ∇Φ) [L, L + 2] with coefficients [N] of Φ,
    // Σ share Δm [L], Σ share (m, 1) [L + 1], Σ share y yᵀ [Y, Y] with y = (x in unbounded space, v, 1).
    void (*tied)(const PotentialCall<Real> &call, const double *coefficients, double *sum, int threads,
                 double *workspace);
    // The velocities after a step [count, dv]; log det(I + h ∇v u) or h ∇v·u; the change of ½|v|² minus T log det; and
    // T h (∇v·u + u·(∇v Φ' − v/T)) [count]. Also the sums of the columns, with their remainders, and the smallest
    // eigenvalue of I + h ∇v u. Coefficients are those of Φ and of Φ' [2][potential functions].
    void (*carry)(const PotentialCall<Real> &call, const CarryStep &how, const MovedParticles &particles,
                  const Real *coefficients, double *log_det, double *change, double *disagreement, double *sum,
                  double *smallest, int threads, double *workspace);
    // ½ Σ share (ψ − wanted)² with coefficients c [M], and its gradient with respect to weights and biases, layer by
    // layer.
    void (*training)(const PotentialCall<Real> &call, const double *wanted, const double *c, double *sum, int threads,
                     double *workspace);
};

struct PotentialKernels {
    PotentialTable<float> single_precision;
    PotentialTable<double> double_precision;
};

}  // namespace kjko
