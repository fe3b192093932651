//! Quantiles of a beta distribution, for [beta sampling](https://arxiv.org/abs/2407.12173).

/// Both parameters of the distribution, as in that paper.
const SHAPE: f64 = 0.6;
/// The beta function at (0.6, 0.6): gamma(0.6)^2 / gamma(1.2).
const BETA_FUNCTION: f64 = 2.415_344_208_002_472_3;
/// Where the terms of the series are below what an `f64` shows: they halve from one to the next.
const TERMS: u32 = 60;
/// Halvings of an interval until it is as narrow.
const HALVINGS: u32 = 60;

/// The value that a Beta(0.6, 0.6) variable stays below with probability `share`, 0 to 1. As `scipy.stats.beta.ppf`.
pub(super) fn beta_quantile(share: f64) -> f64 {
    if share > 0.5 {
        return 1.0 - beta_quantile(1.0 - share);
    }
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if share_below(middle) < share { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The regularised incomplete beta function, for `x` up to 1/2, where its series converges fast.
fn share_below(x: f64) -> f64 {
    // The integrand t^(a - 1) (1 - t)^(a - 1), its second factor expanded, term by term.
    let mut factor = 1.0;
    let mut sum = 0.0;
    for k in 0..TERMS {
        let k = f64::from(k);
        sum += factor / (SHAPE + k);
        factor *= (1.0 - SHAPE + k) / (k + 1.0) * x;
    }
    x.powf(SHAPE) * sum / BETA_FUNCTION
}

#[cfg(test)]
mod tests {
    use super::*;

    // [scipy.stats.beta.ppf(p, .6, .6) for p in (0, .001, .1, .3, .5, .9, 1)]
    #[test]
    fn quantiles_are_those_of_scipy() {
        for (share, right) in SCIPY {
            assert!((beta_quantile(share) - right).abs() < 1e-12, "{share}: {} is not {right}", beta_quantile(share));
        }
    }

    const SCIPY: [(f64, f64); 7] = [
        (0.0, 0.0),
        (0.001, 1.855_873_851_745_199e-5),
        (0.1, 0.039_584_405_588_780_85),
        (0.3, 0.234_017_003_875_235_72),
        (0.5, 0.5),
        (0.9, 0.960_415_594_411_219_2),
        (1.0, 1.0),
    ];
}
