//! Quantiles of a beta distribution, for [beta sampling](https://arxiv.org/abs/2407.12173).

/// Both parameters of the distribution, as in that paper.
const SHAPE: f64 = 0.6;
/// The beta function at (0.6, 0.6): gamma(0.6)^2 / gamma(1.2).
const BETA_FUNCTION: f64 = 2.415_344_208_002_472_3;
/// Number of terms of the series: each is at most half the one before, so the next is below the precision of an `f64`.
const TERMS: u32 = 60;
/// Number of bisections, to the precision of an `f64`.
const HALVINGS: u32 = 60;

/// The quantile `share`, 0 to 1, of Beta(0.6, 0.6). As `scipy.stats.beta.ppf`.
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
    // The integrand t^(a - 1) (1 - t)^(a - 1), with its second factor expanded into a series.
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
