// A log-density ψ and control fields ∇v Φ that are linear in coefficients (hpc_kjko/inner/potential.py): their values, and
// the sums over particles that find the coefficients.
#pragma once

#include "math/carry_step.hpp"
#include "math/constants.hpp"

namespace kjko {

// Functions g: the last of one or two hidden layers s(… W_1 z + b_1 …), s = tanh, then monomials (math/monomials.hpp).
// Inputs z are what positions enter as, then v. Row-major, rows are outputs.
template <class Real>
struct PotentialCall {
    int layers, widths[MOST_FIELD_LAYERS];  // of the inputs and the hidden layers
    const Real *weights[MOST_FIELD_LAYERS - 1], *biases[MOST_FIELD_LAYERS - 1];
    int velocity_dims;
    bool periodic;

    long long count;
    const Real *z;  // [count, inputs]

    // Of sums: each particle's share, and after so many particles a sum is rounded to units; 0 rounds nothing. A second
    // sum is of what that leaves, rounded to a part of the unit, where one is given.
    const double *share;
    long long together;
    double unit, finer;
};

// How many functions of ψ and of Φ there are, and of Φ's that depend on v alone; how many y (below), and how many numbers
// training sums.
struct PotentialSizes {
    int density, potential, low, places, training;
};

// A particle has the same bits wherever it stands, among however many; sums have them on any number of threads.
template <class Real>
struct PotentialTable {
    PotentialSizes (*sizes)(const PotentialCall<Real> &call);
    // Numbers of a workspace for each thread: `sum` is how many numbers an operation adds up.
    long long (*workspace)(const PotentialCall<Real> &call, long long sum);

    // Σ c g of ψ's functions, then v_k³/6 and v_k⁴/24, for each set of coefficients: [sets][count].
    void (*values)(const PotentialCall<Real> &call, int sets, const double *coefficients, double *values, int threads,
                   double *workspace);
    // ∇v Φ for each set of coefficients [sets][potential functions]: [sets][count, dv]; and ∇v∇v Φ of the first
    // `bent` of them: [bent][count, dv, dv].
    void (*slopes)(const PotentialCall<Real> &call, int sets, int bent, const Real *coefficients, Real *gradients,
                   Real *hessians, int threads, double *workspace);

    // Σ share g gᵀ beside Σ share g wanted [M, M + 1], of ψ's.
    void (*normal)(const PotentialCall<Real> &call, const double *wanted, double *sum, int threads, double *workspace);
    // Of Φ's: Σ share ∇g·∇g [N, N], Σ share ∇∇g : ∇∇g [N, N], Σ share Δg [N], Σ share.
    void (*derivatives)(const PotentialCall<Real> &call, double *sum, int threads, double *workspace);
    // Of Φ with coefficients k [N]: Σ share tr (I + h∇∇Φ)⁻¹∇∇g [N], Σ share log det(I + h∇∇Φ), how many have no
    // positive determinant, which have no part in these sums.
    void (*barrier)(const PotentialCall<Real> &call, const double *k, double step, double *sum, int threads,
                    double *workspace);
    // Of Φ's functions m of v alone, L of them: Σ share ∇m·(∇m, v, ∇Φ) [L, L + 2] with coefficients [N] of Φ, Σ share Δm
    // [L], Σ share (m, 1) [L + 1], Σ share y yᵀ [Y, Y] with y = (x outside a box, v, 1).
    void (*tied)(const PotentialCall<Real> &call, const double *coefficients, double *sum, int threads,
                 double *workspace);
    // The velocities after a step [count, dv], log det(I + h ∇v u) or h ∇v·u, the change of ½|v|² less T log det, and
    // T h (∇v·u + u·(∇v Φ' − v/T)) [count]; the sums of columns, twice, and the smallest eigenvalue of I + h ∇v u.
    // Coefficients are those of Φ and of Φ' [2][potential functions].
    void (*carry)(const PotentialCall<Real> &call, const CarryStep &how, const MovedParticles &particles,
                  const Real *coefficients, double *log_det, double *change, double *disagreement, double *sum,
                  double *smallest, int threads, double *workspace);
    // ½ Σ share (ψ − wanted)² with coefficients c [M], and its gradient in weights and biases, layer by layer.
    void (*training)(const PotentialCall<Real> &call, const double *wanted, const double *c, double *sum, int threads,
                     double *workspace);
};

struct PotentialKernels {
    PotentialTable<float> single_precision;
    PotentialTable<double> double_precision;
};

}  // namespace kjko
